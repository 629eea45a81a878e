"""Worlds by hand: what must happen in them, beyond what must hold in every world."""

import pytest

from guards.budget import Unit
from guards.claim import Load, shares
from guards.refusal import Ending
from tests.sim.client import key_place
from tests.sim.plan import PRICE, Server
from tests.sim.scenario import Scenario
from tests.sim.world import World


def hung(*, servers: int = 2, **plan: object) -> Scenario:
    """A fleet whose first server computes nothing any more, after its fifth token."""
    world = Scenario(servers, **plan)
    world.server(0).freeze(after=5)
    return world


def test_nothing_happens():
    """In a calm world an answer comes from one server, and is charged once."""
    world = Scenario()
    one = world.ask(tokens=20)
    world.run()

    assert (one.ending, one.servers) == ("finished", ["s0"])
    assert one.client.settled == one.fact["prompt_tokens"] + 20


@pytest.mark.parametrize("kind", ["stop", "mute", "freeze", "hush", "comments"])
def test_a_hang_is_a_short_pause(kind):
    """However a server falls silent, the client's next token comes within two seconds, from another one."""
    world = Scenario()
    getattr(world.server(0), kind)(after=5)
    one = world.ask(tokens=20)
    world.run()

    assert (one.ending, one.servers) == ("finished", ["s0", "s1"])
    assert 0.2 < one.pause_s < 2.0
    assert one.fact["failovers"] == 1


def test_a_false_suspicion_costs_the_client_nothing():
    """A server that was silent for a moment, and is the first to speak again, goes on as if nothing had been."""
    world = Scenario()
    world.server(0).mute(after=5, for_s=0.32)
    world.plan.servers[1].ttft_s = 2.0
    one = world.ask(tokens=20)
    run = world.run()

    assert (one.ending, one.servers, one.fact["failovers"]) == ("finished", ["s0", "s1"], 0)
    assert one.fact["hedged_tokens"] > 0
    assert one.client.settled == one.fact["prompt_tokens"] + 20
    assert run.ejected == 0


def test_a_server_that_hangs_is_ejected_and_taken_back():
    """Two signals speak against it; once it computes again, it is up again (an invariant of worlds that linger)."""
    world = hung(linger_s=30.0)
    one = world.ask(tokens=20)
    run = world.run()

    assert (one.ending, run.ejected) == ("finished", 1)


def test_one_signal_ejects_nobody():
    """Several streams are stalled together, but the server computes: its canary is answered."""
    world = Scenario(linger_s=30.0)
    for after in (5, 6):
        world.server(0).hush(after=after)
    both = [world.ask(tokens=20), world.ask(tokens=20)]
    run = world.run()

    assert [(one.ending, one.servers) for one in both] == [("finished", ["s0", "s1"])] * 2
    assert run.ejected == 0


def test_the_last_server_is_never_ejected():
    """There is nobody to go on with: its stream waits as long as it may, and the verdict is not spoken."""
    world = hung(servers=1, linger_s=30.0, legs=1)
    one = world.ask(tokens=20)
    run = world.run()

    assert (one.ending, run.ejected) == ("between_tokens_timeout", 0)


def test_the_last_server_is_not_ejected_when_its_stand_in_goes_down_meanwhile():
    """Found by world 21889: a canary that was called off, since its server went down, is no sign of life."""
    world = hung(linger_s=30.0, hedges=0, between_tokens_s=60.0, probe_every_s=0.5)
    world.server(1).mute(at_s=0.5)
    world.ask(tokens=20)
    run = world.run()

    assert run.ejected == 0


@pytest.mark.parametrize("idle_ms", range(60, 100, 2))
def test_a_connection_that_the_server_closes_as_it_is_used_is_no_lost_leg(idle_ms):
    """The one server that may be asked is asked on a fresh connection instead."""
    world = Scenario(servers=1, legs=1, latency_s=0.005, probe_every_s=2.0)
    world.plan.servers[0] = Server(idle_s=idle_ms / 1000, ttft_s=0.001, interval_s=0.001)
    first = world.ask(tokens=1, at_s=0.0, max_tokens=1)
    second = world.ask(tokens=1, at_s=0.1, max_tokens=1)
    world.run()

    assert (first.ending, second.ending) == ("finished", "finished")


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_stop_string_inside_a_chunk_ends_the_answer_there(cut):
    """Found by world 3605: without a tokenizer, ids after the stop string came along with those before it."""
    world = Scenario(tokenizer=False)
    world.plan.servers[1].per_chunk = 5
    world.server(0).cut(after=cut)
    one = world.ask(tokens=25, stops=True)
    world.run()

    assert (one.ending, one.servers) == ("finished", ["s0", "s1"])


def test_a_killed_gateway_charges_what_it_held():
    """All of a hold may have been delivered, so all of it is charged; who comes then is served."""
    world = Scenario(budget=100, lease_tokens=8, low_tokens=2)
    lost = world.ask(tokens=40, max_tokens=40)
    late = world.ask(tokens=5, at_s=1.0, max_tokens=5)
    world.kill_gateway(0.5)
    world.run()

    assert lost.client.dead
    assert 0 < sum(lost.client.got) <= lost.client.settled == lost.client.held[key_place(lost.client)]
    assert late.ending == "finished"


def test_a_broken_disk_refuses_who_comes_and_lets_the_others_finish():
    """What was held covers the stream; its settlement waits until the disk is back."""
    world = Scenario()
    first = world.ask(tokens=20, at_s=0.0, max_tokens=20)
    second = world.ask(tokens=20, at_s=0.3)
    world.break_disk(at_s=0.2, for_s=5.0)
    world.run()

    assert first.ending == "finished"
    assert second.client.outcome == "refused: books_unavailable"


@pytest.mark.parametrize("leave_after", range(1, 8))
def test_a_client_that_leaves_pays_for_what_it_was_sent(leave_after):
    """Wherever it leaves, the hold is settled at what went out (an invariant), and less than all of it did."""
    world = Scenario()
    one = world.ask(tokens=20, leave_after=leave_after)
    world.run()

    assert one.ending == "client_left"
    assert one.client.ids < 20


@pytest.mark.parametrize("budget", range(6, 24, 3))
def test_a_budget_ends_exactly(budget):
    """All of it is delivered, and nothing beyond; the client is told."""
    world = Scenario(budget=budget)
    one = world.ask(tokens=30, max_tokens=30)
    world.run()

    assert one.ending == "budget_exceeded"
    assert one.client.settled == budget
    assert one.client.seen.stop_reason == {0: "budget_exceeded"}


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("amount", [50, 77, 100])
def test_an_org_s_budget_ends_a_stream_exactly(unit, amount):
    """In whatever unit, though the key has none of its own: not one token more could have been paid."""
    world = Scenario(shared={unit: amount}, lease_tokens=4, low_tokens=1)
    one = world.ask(tokens=200, max_tokens=200)
    world.run()

    delivered = Load(one.fact["prompt_tokens"], one.fact["completion_tokens"])
    more = delivered._replace(output=delivered.output + 1)
    if unit is Unit.INPUT:
        assert one.ending == "finished"
    else:
        assert one.ending == "budget_exceeded"
        assert shares(delivered, PRICE)[unit] <= amount < shares(more, PRICE)[unit]
    assert one.fact["cost"] == PRICE.most(*delivered)


def ends_with_its_deadline() -> Scenario:
    """A budget ends two choices inside a chunk, and in that moment the gateway is told to stop."""
    world = Scenario(shared={Unit.OUTPUT: 17}, lease_tokens=4, low_tokens=1, tokenizer=False)
    world.plan.servers[0].per_chunk = 5
    one = world.ask(tokens=40, n=2, temperature=0.7)

    def stop(living: World) -> None:
        answer = one.client.record.answer if one.client.record else None
        if answer is not None and answer.ending is Ending.BUDGET:
            living.gateway.deadlines.stop()

    world.on_step = stop
    return world


def test_a_budget_s_last_words_outlive_a_deadline():
    """What it still paid for is delivered, and the client is told why there is no more."""
    world = ends_with_its_deadline()
    world.run()

    one = world.world.clients["r0"]
    assert (one.ids, one.seen.done, set(one.seen.finish.values())) == (17, True, {"length"})


def test_two_keys_share_their_org_s_money():
    """Neither is told that there is nothing while the other may give back; together they spend it all, and no more."""
    world = Scenario(shared={Unit.MONEY: 600}, lease_tokens=4, low_tokens=1, likely=5)
    asks = [world.ask(tokens=60, max_tokens=60, at_s=0.02 * number) for number in range(3)]
    world.run()

    paid = sum(one.fact["cost"] for one in asks if "cost" in one.fact)
    assert 600 - 6 < paid <= 600
    assert {one.ending for one in asks} >= {"budget_exceeded"}


def test_a_scenario_knows_its_faults():
    """A slip in a scenario is an error, not a calm world."""
    with pytest.raises(AttributeError):
        Scenario().server(0).freze(after=5)
