"""Replicas beside each other, and those that flap: what the fleet makes of it when it picks one."""

import asyncio

from gateway.fleet.replica import Replica
from gateway.fleet.replicas import BESIDE_S, Care
from gateway.stream.leg_end import Cause, LegEnd
from guards.flapping import Plan
from guards.routing import USUAL
from tests.gateway.fleet.test_replicas import DEAD, GOOD, NONE, World

CARE = Care(probe_every_s=0.0, probe_s=1.0, flaps=Plan(wait_s=2.0))


def page(waiting: int = 0, kv_used: float = 0.1) -> LegEnd:
    """An answer of /metrics."""
    said = b"vllm:num_requests_waiting %d\nvllm:kv_cache_usage_perc %f\nvllm:num_preemptions_total 7\n"
    return LegEnd(Cause.DONE, "", 200, said % (waiting, kv_used))


async def world(names: str = "ab") -> World:
    """Replicas of one model, all of them up and active."""
    one = World(*(Replica(name, model="m") for name in names), care=CARE)
    for name in names:
        await one.fleet.probe(name)
        one.pages[name] = page()
    return one


async def rounds(one: World, count: int = 1) -> None:
    """Let so many rounds of probes pass, a second each."""
    for _ in range(count):
        task = asyncio.create_task(one.fleet.run())
        for _ in range(12):
            await asyncio.sleep(0)
        task.cancel()
        one.now_s += 1.0


def gaps(one: World, gap_s: float, *names: str) -> None:
    """A stream of each of these brings tokens."""
    for name in names:
        leg = one.fleet.watch(name, 100, lambda: None)
        for _ in range(33):
            leg.token(gap_s)
        leg.over()


async def test_gauges_are_read_with_the_probes_and_kept_with_their_age():
    """From a replica that is up; once nothing new comes for a while they are dropped, not shown as true."""
    one = await world("a")
    (replica,) = one.fleet.all()
    one.pages["a"] = page(waiting=3, kv_used=0.5)

    await rounds(one)
    read = replica.gauges
    one.pages["a"] = LegEnd(Cause.REFUSED, "", 404)
    await rounds(one, 5)
    kept = replica.gauges
    await rounds(one, 10)

    assert read is not None
    assert (read.waiting, read.kv_used, read.preemptions) == (3.0, 0.5, 7.0)
    assert (kept, replica.gauges) == (read, None)


async def test_a_slow_engine_is_noted_told_once_and_routed_around():
    """Its gaps are ten times the others': it stays up, and gets an eighth of what they get at least."""
    one = await world()
    for _ in range(7):
        gaps(one, 0.4, "a")
        gaps(one, 0.04, "b")
        await rounds(one)

    (slow, _) = one.fleet.all()
    assert slow.health.up
    assert slow.beside.vitals == {"gap_s"}
    assert [name for name, _ in one.compares] == ["a"]
    assert one.fleet.pick("m", NONE) == "b"
    for _ in range(10):
        one.fleet.enter("b", USUAL)
    assert one.fleet.pick("m", NONE) == "a"


async def test_a_server_that_was_slow_is_tried_again_after_a_while():
    """Nothing is sent there, so nothing shows that it recovered; after BESIDE_S it gets its full share to show it."""
    one = await world()
    for _ in range(3):
        gaps(one, 0.4, "a")
        gaps(one, 0.04, "b")
        await rounds(one)
    (slow, _) = one.fleet.all()

    found = slow.beside.vitals
    await rounds(one, 6)  # until no slow gap is among those that are looked at
    kept = slow.beside.vitals
    one.now_s += BESIDE_S
    await rounds(one, 2)

    assert (found, kept, slow.beside.vitals) == ({"gap_s"}, {"gap_s"}, set())
    assert [name for name, _ in one.compares] == ["a", "a"]


async def test_a_long_queue_beside_empty_ones_is_noted():
    """As the servers say themselves: other gateways may be what fills it."""
    one = await world("abc")
    one.pages["c"] = page(waiting=50)

    await rounds(one, 2)

    assert [(name, words) for name, words in one.compares] == [("c", ["50 requests wait there, at the others 0"])]
    assert one.fleet.pick("m", NONE) == "a"


async def down_and_up(one: World, name: str, times: int) -> None:
    for _ in range(times):
        one.health[name] = DEAD
        await one.fleet.probe(name)
        one.now_s += 0.5
        one.health[name] = GOOD
        await one.fleet.probe(name)
        one.now_s += 0.5


async def test_a_replica_that_flaps_is_up_and_gets_nothing_for_a_while():
    """The first return is trusted at once, the second one later; meanwhile others are picked."""
    one = await world()
    (flapping, _) = one.fleet.all()

    await down_and_up(one, "a", 1)
    trusted = one.fleet.pick("m", NONE)
    await down_and_up(one, "a", 1)
    waiting = flapping.health.up, one.fleet.pick("m", NONE)
    one.now_s += 2.0

    assert (trusted, waiting, one.fleet.pick("m", NONE)) == ("a", (True, "b"), "a")


async def test_the_last_replica_of_a_model_is_trusted_however_it_flaps():
    """With the other one down there is nobody else to send anything to."""
    one = await world()
    await down_and_up(one, "a", 5)
    one.health["b"] = DEAD
    await one.fleet.probe("b")

    assert one.fleet.pick("m", NONE) == "a"
    assert one.fleet.not_ready() == []
