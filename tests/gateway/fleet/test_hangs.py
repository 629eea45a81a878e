"""Servers that hang, as the fleet finds them: examined after a silence, ejected on two signals, readmitted warm."""

import asyncio
from typing import Any

import pytest

from gateway.fleet.pulse import Watch
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import EXAMINATIONS_MAX, QUIET_PROBES, Care
from guards.health import Probe
from tests.gateway.fleet.test_replicas import DEAD, GOOD, NONE, SILENT, World, answered, counters, models

CARE = Care(probe_every_s=0.0, probe_s=1.0, canary_s=2.0)


async def world(names: str = "ab", **said: Any) -> World:
    """Replicas of one model, all of them up; the first is active."""
    one = World(*(Replica(name, standby=name != "a", model="m") for name in names), care=CARE, **said)
    for name in names:
        await one.fleet.probe(name)
    one.asked.clear()
    one.changes.clear()
    return one


def hang(one: World, name: str) -> None:
    """From now on a server answers /health and /metrics, and computes nothing."""
    one.canaries[name] = SILENT


def streams(one: World, name: str, count: int) -> list[Watch]:
    """Open so many streams there."""
    for _ in range(count):
        one.fleet.enter(name)
    return [one.fleet.watch(name, 100, lambda: None) for _ in range(count)]


async def examined(one: World) -> None:
    """Wait until nobody is looked at any more."""
    while one.fleet._busy:
        await asyncio.gather(*one.fleet._busy.values(), return_exceptions=True)
        await asyncio.sleep(0)


def sung(one: World, name: str = "a") -> int:
    """How many canaries were sent there."""
    return one.asked.count((name, "/v1/completions"))


# -------------------------------------------------------------------- who is raced, and how often


async def test_a_second_leg_goes_to_a_server_that_is_up_and_has_no_silent_stream():
    """The order is that of any leg; but where all are down, silent or tried already, nobody is raced."""
    one = await world("abc")
    second = one.fleet.second

    assert (second("m", NONE), second("m", frozenset("a")), second("m", frozenset("abc"))) == ("a", "b", None)
    (leg, *_) = streams(one, "b", 5)
    leg.silence()
    assert second("m", frozenset("a")) == "c", "one silent stream of five is enough"
    leg.token(0.1)
    assert second("m", frozenset("ac")) == "b"
    one.health["b"] = DEAD
    await one.fleet.probe("b")
    assert second("m", frozenset("ac")) is None
    one.fleet.close()


async def test_new_requests_avoid_a_server_most_of_whose_streams_are_silent():
    """Before any verdict: a standby without silent streams is the better bet."""
    one = await world()
    first, *_ = legs = streams(one, "a", 2)

    before = one.fleet.pick("m", NONE)
    first.silence()
    doubted = one.fleet.pick("m", NONE)
    for leg in legs:
        leg.token(0.1)

    assert (before, doubted, one.fleet.pick("m", NONE)) == ("a", "b", "a")
    one.fleet.close()


async def test_races_of_all_requests_together_are_bounded():
    """A burst when a server with many streams hangs, then so many per second."""
    one = World(Replica("a"), care=Care(0.0, 1.0, hedges_per_s=2.0, hedges_burst=3))

    burst = [one.fleet.may_hedge() for _ in range(5)]
    one.now_s = 1.0
    later = [one.fleet.may_hedge() for _ in range(3)]

    assert burst == [True, True, True, False, False]
    assert later == [True, True, False]


# -------------------------------------------------------------------- verdicts


async def test_a_server_that_hangs_is_ejected_on_two_signals():
    """An unanswered canary and counters that stand still: it is down, its legs end, and the words say why."""
    one = await world()
    hang(one, "a")
    (leg,) = streams(one, "a", 1)

    leg.silence()
    await examined(one)

    health = one.fleet.all()[0].health
    assert one.changes == [("a", False, "hangs: a canary is not answered, its token counters stand still")]
    assert (health.gone, health.hung) == (True, True)
    assert sung(one) == 1
    assert one.fleet.pick("m", NONE) == "b"


PAIRS = {
    "streams and canary": {"streams": 2, "pages": counters(0)},
    "metrics and canary": {"streams": 1, "pages": SILENT},
    "streams and metrics, no canary": {"streams": 2, "pages": SILENT, "canary": answered(400)},
    "streams and counters, no canary": {"streams": 2, "canary": answered(400)},
}


@pytest.mark.parametrize("pair", PAIRS)
async def test_any_two_signals_are_enough(pair):
    """Servers whose counters are switched off, and those that have no token to give, are found as well."""
    said = {"canary": SILENT, "pages": counters(5)} | PAIRS[pair]
    one = await world()
    one.canaries["a"], one.pages["a"] = said["canary"], said["pages"]

    for leg in streams(one, "a", said["streams"]):
        leg.silence()
    await examined(one)

    assert one.fleet.all()[0].health.hung


@pytest.mark.parametrize(
    "single",
    [{"canary": SILENT, "pages": counters(0)}, {"canary": answered(400), "pages": SILENT}, {"canary": answered(400)}],
    ids=["canary", "metrics", "counters"],
)
async def test_one_signal_is_looked_at_again_and_then_left(single):
    """A canary waits in a full queue, a busy process answers late: so often, then not before the next silence."""
    one = await world()
    one.canaries["a"], one.pages["a"] = single["canary"], single.get("pages", counters(5))
    (leg,) = streams(one, "a", 1)

    leg.silence()
    await examined(one)
    asked = sung(one)
    leg.token(0.1)
    leg.silence()
    await examined(one)

    assert (asked, sung(one)) == (EXAMINATIONS_MAX, 2 * EXAMINATIONS_MAX)
    assert one.changes == []


@pytest.mark.parametrize("outrun", [False, True])
async def test_streams_that_were_moved_meanwhile_still_speak_against_it(outrun):
    """Races are won long before a canary is late; that the silent streams have ended does not make them unheard of."""
    one = await world()
    one.canaries["a"], one.pages["a"] = SILENT, counters(0)
    first, *others = legs = streams(one, "a", 4)

    def meanwhile() -> None:
        for leg in others:
            leg.silence()
        for leg in legs if outrun else []:
            leg.over()
        others.clear()

    one.meanwhile["a"] = meanwhile
    first.silence()
    await examined(one)

    assert one.changes == [("a", False, "hangs: 4 of 4 streams are silent, a canary is not answered")]


async def test_several_silent_streams_among_many_that_go_on_are_no_signal():
    """Three of ten wait for their own reasons."""
    one = await world()
    one.canaries["a"], one.pages["a"] = SILENT, counters(0)

    for leg in streams(one, "a", 10)[:3]:
        leg.silence()
    await examined(one)

    assert one.changes == []


@pytest.mark.parametrize("life", ["a token", "counters", "canary"])
async def test_any_sign_of_life_ends_the_examination(life):
    """A token on any stream, counters that move, or a canary that is answered: nothing more is asked."""
    one = await world()
    hang(one, "a")
    leg, other = streams(one, "a", 2)
    if life == "canary":
        one.canaries["a"] = GOOD
    elif life == "a token":
        one.meanwhile["a"] = lambda: other.token(0.1)
    else:
        one.meanwhile["a"] = lambda: one.pages.update(a=counters(6))

    leg.silence()
    await examined(one)

    assert one.changes == []
    assert sung(one) == 1


async def test_a_server_that_comes_to_life_between_two_looks_is_left_alone():
    """Each look has evidence of its own: what was held against it before is forgotten."""
    one = await world()
    one.canaries["a"], one.pages["a"] = SILENT, counters(0)
    (leg,) = streams(one, "a", 1)

    def meanwhile() -> None:
        if sung(one) == 3:
            one.canaries["a"] = GOOD

    one.meanwhile["a"] = meanwhile
    leg.silence()
    await examined(one)

    assert (sung(one), one.changes) == (3, [])


@pytest.mark.parametrize(
    "other", ["none", "down", "silent too", "idle, and computes nothing either", "of another model"]
)
async def test_the_last_replica_is_never_ejected(other):
    """Nor one that is no worse than the others: when all are slow, the fleet is starved, and ejection would end it."""
    one = await world("a" if other == "none" else "ab")
    hang(one, "a")
    if other == "down":
        one.health["b"] = DEAD
        await one.fleet.probe("b")
        one.changes.clear()
    elif other == "silent too":
        for leg in streams(one, "b", 5)[:1]:
            leg.silence()
        one.canaries["b"] = SILENT
    elif other == "idle, and computes nothing either":
        one.canaries["b"] = SILENT
    elif other == "of another model":
        one.fleet.all()[1].model = "n"

    for leg in streams(one, "a", 4):
        leg.silence()
    await examined(one)

    assert one.changes == []
    assert sung(one) == EXAMINATIONS_MAX


@pytest.mark.parametrize("both", [True, False])
async def test_a_discovered_server_must_be_the_last_of_none_of_its_models(both):
    """One that also serves a model that nobody else does is kept."""
    cards = models(m=100, n=100)
    one = World(Replica("a"), Replica("b"), care=CARE, a=cards, b=cards if both else models(m=100))
    for name in "ab":
        await one.fleet.probe(name)
    hang(one, "a")

    for leg in streams(one, "a", 2):
        leg.silence()
    await examined(one)

    assert one.fleet.all()[0].health.hung is both


async def test_a_hundred_silences_make_one_examination():
    """They are one suspicion; and another server's examination does not wait for it."""
    one = await world("abc")
    one.held = asyncio.Event()

    for leg in streams(one, "a", 100) + streams(one, "b", 1):
        leg.silence()
    await asyncio.sleep(0)
    asked = list(one.asked)
    one.held.set()
    await examined(one)

    assert asked == [("a", "/metrics"), ("b", "/metrics")]
    assert (sung(one, "a"), sung(one, "b")) == (1, 1)


async def test_a_server_that_was_found_down_meanwhile_is_examined_no_further():
    """It is known to be gone; the reason that was found first stands."""
    one = await world()
    one.canaries["a"], one.pages["a"] = SILENT, SILENT
    replica = one.fleet.all()[0]
    one.meanwhile["a"] = lambda: one.fleet._judge(replica, replica.health.after(Probe.DEAD))
    (leg,) = streams(one, "a", 1)

    leg.silence()
    await examined(one)

    assert one.changes == [("a", False, "its engine is dead")]
    assert (replica.health.hung, sung(one)) == (False, 1)


async def test_a_server_that_probes_took_for_down_meanwhile_is_ejected_still():
    """Unanswered probes alone leave its streams alone; a hang ends them."""
    one = await world()
    one.canaries["a"] = one.pages["a"] = one.health["a"] = SILENT
    replica = one.fleet.all()[0]

    def meanwhile() -> None:
        for _ in range(3):
            replica.health = replica.health.after(Probe.SILENT)

    one.meanwhile["a"] = meanwhile
    (leg,) = streams(one, "a", 1)
    leg.silence()
    await examined(one)

    assert (replica.health.hung, replica.health.gone) == (True, True)


async def test_a_token_that_comes_while_the_others_are_asked_saves_a_server():
    """The last question takes time too; whoever computes meanwhile does not hang."""
    one = await world()
    hang(one, "a")
    leg, other = streams(one, "a", 2)

    def meanwhile() -> None:
        other.token(0.1)
        one.canaries["a"] = GOOD

    one.meanwhile["b"] = meanwhile
    leg.silence()
    await examined(one)

    assert one.changes == []
    assert sung(one, "b") == 1


@pytest.mark.parametrize(("between_s", "waited_s"), [(0.01, 2.0), (5.0, 15.0)])
async def test_a_canary_has_as_long_as_the_server_usually_takes(between_s, waited_s):
    """At least what is configured, and on a slow server what a silence must last to be suspicious there."""
    one = await world()
    hang(one, "a")
    (leg,) = streams(one, "a", 1)
    for _ in range(101):
        leg.token(between_s)

    leg.silence()
    await examined(one)

    assert waited_s <= one.waits[0] <= waited_s * 1.25


async def test_closing_ends_every_examination():
    """A gateway that stops leaves no canary behind."""
    one = await world()
    one.held = asyncio.Event()
    (leg,) = streams(one, "a", 1)
    leg.silence()
    one.fleet.suspect("b")
    await asyncio.sleep(0)
    tasks = list(one.fleet._busy.values())

    one.fleet.close()
    await asyncio.wait(tasks, timeout=2)
    await asyncio.sleep(0)

    assert [task.cancelled() for task in tasks] == [True, True]
    assert one.fleet._busy == {}


# -------------------------------------------------------------------- readmission


async def test_a_server_comes_back_only_after_a_warm_canary():
    """/health alone proves nothing: it answered 200 all the time that the engine hung."""
    one = await world()
    hang(one, "a")
    (leg,) = streams(one, "a", 1)
    leg.silence()
    await examined(one)
    leg.over()
    one.fleet.leave("a")

    cold = [await one.fleet.probe("a") for _ in range(2)]
    kept = one.fleet.all()[0].health
    one.canaries["a"] = GOOD
    await one.fleet.probe("a")

    assert [probe.name for probe in cold] == ["COLD", "COLD"]
    assert (kept.up, kept.gone) == (False, False)
    assert [(up, why) for _, up, why in one.changes[1:]] == [
        (False, "answers, but computes nothing yet"), (True, "answers"),
    ]  # fmt: skip
    assert one.waits[-1] == CARE.canary_s
    assert one.fleet.pick("m", NONE) == "a"


@pytest.mark.parametrize("why", [DEAD, SILENT])
async def test_whoever_was_down_for_whatever_reason_must_be_warm(why):
    """Also a server that was dead, or did not answer, gets no request before it has computed one token."""
    one = await world()
    one.health["a"] = why
    for _ in range(3):
        await one.fleet.probe("a")
    one.health["a"] = GOOD
    hang(one, "a")

    await one.fleet.probe("a")
    cold = one.fleet.all()[0].health.up
    one.canaries["a"] = answered(400)  # an embedding model: it has no token to give, and is not silent
    await one.fleet.probe("a")

    assert (cold, one.fleet.all()[0].health.up) == (False, True)


async def test_a_first_probe_needs_no_canary():
    """A gateway that starts does not wait for every server to compute; nobody has reason to doubt them."""
    one = await world()

    assert one.waits == []


# -------------------------------------------------------------------- plain answers


@pytest.mark.parametrize(("requests", "found"), [(1, True), (0, False)])
async def test_a_server_that_brings_no_plain_answer_is_examined_after_a_while(requests, found):
    """Plain answers have no tokens on the way, so a server is asked for one when requests wait and nothing comes."""
    one = await world()
    hang(one, "a")
    for _ in range(requests):
        one.fleet.enter("a")

    for _ in range(QUIET_PROBES - 1):
        await one.fleet.probe("a")
    early = sung(one)
    await one.fleet.probe("a")
    await examined(one)

    assert early == 0
    assert one.fleet.all()[0].health.hung is found


async def test_a_server_that_is_only_slow_with_a_plain_answer_is_asked_now_and_then():
    """A long answer costs one canary in so many probes, and no verdict."""
    one = await world()
    one.fleet.enter("a")

    for _ in range(3 * QUIET_PROBES):
        await one.fleet.probe("a")
    await examined(one)

    assert (sung(one), one.changes) == (3, [])


@pytest.mark.parametrize("busy", ["streams only", "tokens come"])
async def test_where_streams_tell_nobody_is_asked(busy):
    """Streams find their silences by themselves; and where one brings tokens, the plain answers are computed too."""
    one = await world()
    hang(one, "a")
    (leg,) = streams(one, "a", 1)
    if busy == "tokens come":
        one.fleet.enter("a")

    for _ in range(3 * QUIET_PROBES):
        if busy == "tokens come":
            leg.token(0.1)
        await one.fleet.probe("a")
    await examined(one)

    assert sung(one) == 0
