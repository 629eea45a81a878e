"""Permits are given back once, whoever gives or takes them back, and none is lost."""

import random
from collections import Counter

import pytest

from guards.concurrency import Aimd
from guards.permits import GATES_KEPT, Permit, Permits, lacking


def permits(requests_max: int = 10) -> Permits:
    """Permits of servers with plenty of room."""
    return Permits(Aimd(), requests_max)


def take(some: Permits, *what) -> Permit:
    """One more permit."""
    permit = Permit()
    some.take(permit, *what)
    return permit


def test_a_gate_lets_as_many_in_as_it_has_permits():
    """And the next one when one of these has ended."""
    some = permits()
    gate = some.gate("tenant", "acme", 1, 2)
    first, _ = (take(some, (gate,), some.server("a"), 1, 100) for _ in range(2))
    full = lacking((gate,))

    some.give_back(first)

    assert (full, lacking((gate,))) == (gate, None)


def test_depths_have_permits_of_their_own():
    """What parents hold is not what their children wait for."""
    some = permits()
    parents, children = (some.gate("tenant", "acme", depth, 1) for depth in (1, 2))
    take(some, (parents,), some.server("a"), 1, 100)

    assert lacking((parents,)) is parents
    assert lacking((children,)) is None


def test_a_permit_is_given_back_once():
    """Whoever does so again changes nothing."""
    some = permits()
    gate, server = some.gate("tenant", "acme", 1, 5), some.server("a")
    one, _ = (take(some, (gate,), server, 1, 100) for _ in range(2))

    assert [some.give_back(one), some.give_back(one)] == [True, False]
    assert (gate.taken, server.requests, server.depths[1], server.room.tokens) == (1, 1, 1, 100)


def test_all_permits_of_a_lost_server_come_back_at_once():
    """Those of others stay; and when its requests end later, nothing comes back twice."""
    some = permits()
    gate = some.gate("tenant", "acme", 1, 9)
    lost = [take(some, (gate,), some.server("a"), 1, 100) for _ in range(3)]
    take(some, (gate,), some.server("b"), 1, 100)

    count = some.recall("a")
    late = [some.give_back(permit) for permit in lost]
    after = take(some, (gate,), some.server("a"), 1, 100)

    assert (count, late) == (3, [False] * 3)
    assert (gate.taken, after.good, lost[0].good) == (2, True, False)
    assert some.server("a").room.tokens == 100


def test_what_a_lost_servers_request_still_takes_is_nobodys():
    """It may go on to grow; the server that came back knows nothing of it."""
    some = permits()
    permit = take(some, (), some.server("a"), 1, 100)
    some.recall("a")

    permit.grow(500)

    assert some.server("a").room.tokens == 0


def test_a_request_takes_what_it_grew_to_and_never_less_than_was_foreseen():
    """And gives all of that back."""
    some = permits()
    server = some.server("a")
    permit = take(some, (), server, 1, 100)
    seen = []
    for tokens in (50, 150, 120):
        permit.grow(tokens)
        seen.append(server.room.tokens)
    some.give_back(permit)

    assert seen == [100, 150, 150]
    assert server.room.tokens == 0


def test_a_request_takes_less_when_it_is_known_to_be_smaller():
    """Room that it does not need is others'; and it gives back what it has, no more."""
    some = permits()
    server = some.server("a")
    permit, lost = take(some, (), server, 1, 100), take(some, (), some.server("b"), 1, 100)
    some.recall("b")

    permit.resize(30)
    lost.resize(30)
    smaller = server.room.tokens
    some.give_back(permit)

    assert (smaller, server.room.tokens, some.server("b").room.tokens) == (30, 0, 0)


def test_a_full_server_lets_one_of_each_depth_in():
    """Else parents that fill it would wait for children that it has no room for."""
    server = permits(requests_max=1).server("a")
    some = permits(requests_max=1)
    server = some.server("a")
    take(some, (), server, 1, 100)

    assert not server.fits(100, 1)
    assert server.fits(100, 2)


def test_no_permit_is_lost_or_given_back_twice_in_any_order():
    """Starts, ends, second ends and lost servers as they come: what gates count is what good permits hold."""
    rng, some = random.Random(7), permits()
    gates = [some.gate("tenant", f"t{number}", 1, 50) for number in range(8)]
    held = []
    for _ in range(20_000):
        act = rng.random()
        if act < 0.5:
            chosen = tuple(rng.sample(gates, 2))
            held.append(take(some, chosen, some.server(rng.choice("abc")), 1, rng.randint(1, 99)))
        elif act < 0.9:
            if held:
                some.give_back(rng.choice(held[-20:]))
        elif act < 0.99:
            if held:
                rng.choice((Permit.grow, Permit.resize))(rng.choice(held[-20:]), rng.randint(1, 99))
        else:
            some.recall(rng.choice("abc"))
    good = [permit for permit in held if permit.good]
    counted = Counter(gate for permit in good for gate in permit.gates)

    assert good
    assert [gate.taken for gate in gates] == [counted[gate] for gate in gates]
    for name in "abc":
        here = [permit for permit in good if permit.at is some.server(name)]
        assert (some.server(name).requests, some.server(name).room.tokens) == (len(here), sum(p.tokens for p in here))


def test_gates_that_nobody_is_at_are_forgotten():
    """Agents' names are clients' words: there is no end of them."""
    some = permits()
    used = some.gate("agent", "used", 1, 1)
    take(some, (used,), some.server("a"), 1, 1)
    for number in range(3 * GATES_KEPT):
        some.gates([("agent", f"once-{number}", 1, 1)])

    assert len(some._gates) <= GATES_KEPT + 1
    assert some.gate("agent", "used", 1, 1) is used


@pytest.mark.parametrize("before", range(GATES_KEPT - 3, GATES_KEPT + 2))
def test_no_gate_of_a_request_is_forgotten_while_the_others_are_made(before):
    """Else the next request had another gate for the same thing, and as many permits again."""
    some = permits()
    for number in range(before):
        some.gates([("agent", f"once-{number}", 1, 1)])
    needs = [(kind, "one", 1, 1) for kind in ("model", "tenant", "agent")]

    take(some, some.gates(needs), some.server("a"), 1, 1)

    assert [lacking([gate]) for gate in some.gates(needs)] == list(some.gates(needs))
    assert some.taken == len(needs)
