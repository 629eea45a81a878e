"""When requests end for time: their own, their key's, their model's, their session's. Time is simulated."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from gateway.books.tenants import Tenant
from gateway.deadlines import LOOK_EVERY_S, Deadlines, Expired
from gateway.stream.call import Bounds, Call, Endpoint
from guards.refusal import Ending, Reason, Refused
from guards.timeouts import Due, Times
from tests.sim.loop import SimLoop

HOUR_S = 3600.0
ALICE = Tenant("key_a", "alice")


def call(model: str = "m", session: str | None = None) -> Call:
    one = Call(Endpoint.CHAT, json.dumps({"model": model, "messages": []}).encode(), "r", Bounds())
    one.session = session
    return one


def tenant(turn_s: float | None = None, session_s: float | None = None) -> Tenant:
    return Tenant("key_a", "alice", times=Times(turn_s, session_s))


async def ended(deadlines: Deadlines, one: Call, who: Tenant = ALICE) -> tuple[float, Ending, str]:
    """Run a request that ends by its deadline alone: after how long, and with which words."""
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(Expired) as expired, deadlines.of(one, who):
        await asyncio.sleep(10 * HOUR_S)
    return round(asyncio.get_running_loop().time() - began_s, 2), *expired.value.verdict


def simulated(scene: Callable[[], Awaitable[None]]) -> None:
    loop = SimLoop()
    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("said", "model", "wanted_s"),
    [
        (Times(), "m", HOUR_S), (Times(5.0), "m", 5.0), (Times(), "slow", 2 * HOUR_S), (Times(5.0), "slow", 5.0),
        (Times(3 * HOUR_S), "slow", 2 * HOUR_S), (Times(2 * HOUR_S), "m", 2 * HOUR_S),
    ],
)  # fmt: skip
def test_a_key_and_a_model_say_how_long_a_turn_may_take(said, model, wanted_s):
    """Instead of what holds for all, also where that is shorter; of the two the shorter one."""

    async def scene() -> None:
        deadlines = Deadlines(HOUR_S, models={"slow": Times(2 * HOUR_S)})
        who = Tenant("key_a", "alice", times=said)

        took_s, ending, detail = await ended(deadlines, call(model), who)

        assert (took_s, ending) == (pytest.approx(wanted_s, abs=0.01), Ending.TIMEOUT)
        assert f"{wanted_s:g} s" in detail

    simulated(scene)


def test_requests_end_each_in_its_own_time():
    """Whoever began first: the timer is set for the one that is due first, and again for the next."""

    async def scene() -> None:
        deadlines = Deadlines(HOUR_S)
        limits = [50.0, 10.0, 30.0, 30.0, 10.005]

        took = await asyncio.gather(*(ended(deadlines, call(), tenant(limit)) for limit in limits))

        assert all(0 <= took_s - limit <= LOOK_EVERY_S for (took_s, *_), limit in zip(took, limits, strict=True))
        assert len(deadlines._running) == 0

    simulated(scene)


@pytest.mark.parametrize(
    ("tier", "wanted_s"), [(None, 30.0), ("gold", 20.0), ("gone", 30.0)], ids=["unsaid", "said", "of no tier any more"]
)
def test_a_tier_says_how_long_turns_of_its_keys_may_take(tier, wanted_s):
    """Those for which none is said, or one that is not there any more, are of the usual tier."""

    async def scene() -> None:
        deadlines = Deadlines(HOUR_S, tiers={"gold": Times(20.0)}, tier=Times(30.0))
        took_s, ending, _ = await ended(deadlines, call(), Tenant("key_a", "alice", tier=tier))
        assert (took_s, ending) == (wanted_s, Ending.TIMEOUT)

    simulated(scene)


@pytest.mark.parametrize(("at_s", "wanted_s"), [(10.0, 10.0), (50.0, 40.0)])
def test_what_is_asked_for_may_end_it_sooner_and_never_later(at_s, wanted_s):
    """The limit of its class is known only after its own time has begun."""

    async def scene() -> None:
        now_s = asyncio.get_running_loop().time()
        deadline = Deadlines(40.0).of(call(), ALICE).over(None, Due(now_s + at_s, Ending.TIMEOUT, at_s))
        with pytest.raises(Expired) as expired, deadline:
            await asyncio.sleep(HOUR_S)
        assert asyncio.get_running_loop().time() - now_s == pytest.approx(wanted_s, abs=0.01)
        assert f"{wanted_s:g} s" in expired.value.verdict[1]

    simulated(scene)


def test_nothing_is_begun_whose_time_is_over_already():
    """As where its budget was long waited for."""

    async def scene() -> None:
        deadlines, begun = Deadlines(HOUR_S), False
        deadline = deadlines.of(call(), ALICE).over(None, Due(1.0, Ending.TIMEOUT, 1.0))
        await asyncio.sleep(2)
        with pytest.raises(Expired) as expired, deadline:
            begun = True
        assert (begun, expired.value.verdict[0], deadlines.revoke({"key_a"})) == (False, Ending.TIMEOUT, 0)

    simulated(scene)


def test_a_session_ends_what_runs_and_refuses_what_comes():
    """Its time runs from its first request, whether or not one runs; the refusal names the limit."""

    async def scene() -> None:
        deadlines = Deadlines(HOUR_S, session_s=100.0)
        with deadlines.of(call(session="s"), ALICE):
            await asyncio.sleep(30)
        await asyncio.sleep(30)

        took_s, ending, detail = await ended(deadlines, call(session="s"))
        with pytest.raises(Refused) as refused:
            deadlines.of(call(session="s"), ALICE)

        assert (took_s, ending) == (40.0, Ending.SESSION)
        assert "100 s" in detail
        assert (refused.value.reason, refused.value.detail) == (Reason.SESSION, detail)

    simulated(scene)


def test_a_session_is_one_key_s_and_others_are_not_bound():
    """Another session, another key's, and a request of none begin with all of their time."""

    async def scene() -> None:
        deadlines = Deadlines(HOUR_S)
        bound, lived = tenant(session_s=100.0), 0
        await ended(deadlines, call(session="s"), bound)

        for one, who in (
            (call(session="t"), bound),
            (call(), bound),
            (call(session="s"), Tenant("key_b", "bob", times=Times(None, 100.0))),
            (call(session="s"), ALICE),
        ):
            with deadlines.of(one, who):
                await asyncio.sleep(99)
                lived += 1

        assert lived == 4
        with pytest.raises(Refused):
            deadlines.of(call(session="s"), bound)

    simulated(scene)


def test_what_has_ended_is_looked_at_no_more():
    """A timer that was set for it finds nothing, and sets none."""

    async def scene() -> None:
        deadlines = Deadlines(10.0)
        with deadlines.of(call(), ALICE):
            await asyncio.sleep(1)
        await asyncio.sleep(20)

        assert deadlines._timer is None

    simulated(scene)
