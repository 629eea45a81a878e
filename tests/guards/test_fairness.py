"""Counters of what tenants were served: no credit for a rest, no debt for an idle server, and nothing kept for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.fairness import Tenants

NAMES = st.sampled_from("abcdef")
SERVED = st.lists(st.tuples(NAMES, st.integers(0, 100)), max_size=60)


def served(tenants: Tenants, name: str, tokens: int, weight: float = 1.0):
    """A request of a tenant's was sent to a server, where nobody waits, and took so many tokens."""
    tenant = tenants.of(name, weight, None)
    tenants.last = tenant
    tenant.charge(tokens)
    return tenant


def test_who_comes_back_has_no_credit():
    """A tenant that rested while others were served begins where the least served of those that wait is."""
    tenants = Tenants()
    served(tenants, "rests", 10)
    busy = served(tenants, "busy", 5_000)

    assert tenants.of("rests", 1.0, busy.served).served == busy.served


def test_an_idle_server_makes_no_debt():
    """What a tenant took while nobody else wanted it is not held against it: a newcomer begins beside it."""
    tenants = Tenants()
    alone = served(tenants, "alone", 1_000_000)

    assert tenants.of("new", 1.0, None).served == alone.served


def test_who_waits_keeps_its_counter():
    """A lift is for those that come back, not for those that are behind because they wait."""
    tenants = Tenants()
    waits = tenants.of("waits", 1.0, None)
    waits.ready = 1
    served(tenants, "busy", 5_000)

    assert tenants.of("waits", 1.0, 0.0).served == 0.0


def test_weights_divide_what_is_charged():
    """Of twice the weight, twice as much is as much."""
    tenants = Tenants()

    assert served(tenants, "heavy", 200, weight=2.0).served == 100


@given(SERVED)
def test_what_is_forgotten_makes_no_difference(steps):
    """A tenant that is not above the floor comes back with the same counter as if it had been remembered."""
    all_of, some = Tenants(), Tenants(kept=0)
    for name, tokens in steps:
        assert served(all_of, name, tokens).served == served(some, name, tokens).served
        assert all_of.floor(None) == some.floor(None)
        for one in some._known.values():
            one.held = int(one.served > some.floor(None))  # those stay, as if they had requests here


def test_the_floor_never_falls():
    """Whoever was dispatched last, a newcomer is never put below one that came before."""
    tenants, before = Tenants(), 0.0
    for number, tokens in enumerate([500, 10, 300, 0, 700, 20]):
        served(tenants, f"t{number % 4}", tokens)
        floor = tenants.floor(None)
        assert floor >= before
        before = floor
    assert before > 0


@pytest.mark.parametrize("debt", [0, 50])
def test_tenants_without_requests_are_bounded_in_number(debt):
    """Ten thousand of them come and go; as many are remembered as may be, also if all were served more than most."""
    tenants = Tenants(kept=100)
    for number in range(10_000):
        tenant = tenants.of(f"t{number}", 1.0, None)
        tenant.charge(debt)

    assert len(tenants) <= 101


def test_of_those_with_debts_the_largest_are_remembered():
    """If fairness has to suffer, it is by the least that it can be."""
    tenants = Tenants(kept=100)
    for number in range(101):
        tenants.of(f"t{number}", 1.0, None).charge(number)

    assert {"t99", "t75", "t51"} <= set(tenants._known)
    assert "t1" not in tenants._known


def test_a_look_at_a_tenant_changes_nothing():
    """One with nothing here is as it would come: with the weight that is said now, and not remembered for that."""
    tenants = Tenants()
    there = tenants.of("there", 1.0, None)
    there.held = 1
    tenants.of("gone", 1.0, None)

    assert tenants.look("there", 2.0) is there
    assert (tenants.look("gone", 2.0).weight, tenants.look("new", 3.0).weight) == (2.0, 3.0)
    assert (len(tenants), tenants.of("gone", 1.0, None).weight) == (2, 1.0)
