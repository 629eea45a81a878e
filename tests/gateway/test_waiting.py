"""Requests wait for a server, and their wait ends: with a start, a refusal, or because their client is gone."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.waiting import Waiting
from guards.admission import NOTHING, Admission, Bounds, Moves
from guards.place import Ask, Place, Share
from guards.refusal import Reason, Refused
from tests.sim.loop import SimLoop

ASK = Ask(Share("acme"), "m", 10, 10)


class Stage:
    """One server with room for one request, in virtual time."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop, self.log = loop, list[tuple[float, str]]()
        self.admission = Admission(Bounds(server=1, wait_s=30.0), self._route, lambda place, server: 0.5)
        self.waiting = Waiting(self.admission, loop.time)

    def _route(self, place: Place) -> str | None:
        return "a" if self.admission.fits("a", place) else None

    async def serve(self, name: str, seconds: float = 1.0, within_s: float | None = None) -> None:
        """One request, which takes so long."""
        due_s = None if within_s is None else self.loop.time() + within_s
        async with self.waiting.place(ASK._replace(deadline_s=due_s)):
            self.note(f"{name} starts")
            await asyncio.sleep(seconds)

    def note(self, what: str) -> None:
        """Something happened now."""
        self.log.append((round(self.loop.time(), 2), what))

    def at_rest(self) -> bool:
        """Whether nothing is left behind."""
        permits = self.admission._permits
        at_servers = sum(server.requests + server.room.tokens for server in permits._servers.values())
        return not (len(self.waiting) or self.admission.waiting or permits.taken or at_servers)


def played(act: Callable[[Stage], Awaitable[None]]) -> Stage:
    """What happened in a scene."""
    loop = SimLoop()
    stage = Stage(loop)
    try:
        loop.run_until_complete(act(stage))
    finally:
        loop.close()
    return stage


def test_one_starts_when_the_one_before_ends():
    """In virtual time that is to the moment."""

    async def scene(stage: Stage) -> None:
        await asyncio.gather(*(stage.serve(name) for name in ("first", "second", "third")))

    stage = played(scene)

    assert stage.log == [(0.0, "first starts"), (1.0, "second starts"), (2.0, "third starts")]
    assert stage.at_rest()


@pytest.mark.parametrize(("within_s", "reason", "at_s"), [(None, Reason.OVERLOADED, 30.0), (5.0, Reason.LATE, 4.5)])
def test_a_wait_that_is_over_is_a_refusal(within_s, reason, at_s):
    """By the timer, with nothing else happening: after the longest wait, or when it cannot be in time any more."""

    async def scene(stage: Stage) -> None:
        running = asyncio.ensure_future(stage.serve("first", seconds=100.0))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await stage.serve("second", within_s=within_s)
        stage.note(refused.value.reason)
        await running

    stage = played(scene)

    assert stage.log[1:] == [(at_s, reason)]
    assert stage.at_rest()


def test_a_client_that_leaves_while_it_waits_is_forgotten():
    """The next one has its turn."""

    async def scene(stage: Stage) -> None:
        tasks = [asyncio.ensure_future(stage.serve(name)) for name in ("first", "gone", "third")]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stage = played(scene)

    assert stage.log == [(0.0, "first starts"), (1.0, "third starts")]
    assert stage.at_rest()


def test_a_client_that_leaves_as_it_is_let_in_gives_its_permit_back():
    """It was started, and cancelled before it heard of that: in the same turn of the loop."""

    async def scene(stage: Stage) -> None:
        first = await stage.waiting.begin(ASK)
        gone, third = (asyncio.ensure_future(stage.serve(name)) for name in ("gone", "third"))
        await asyncio.sleep(0)
        stage.waiting.leave(first)
        gone.cancel()
        await asyncio.gather(gone, third, return_exceptions=True)

    stage = played(scene)

    assert [what for _, what in stage.log] == ["third starts"]
    assert stage.at_rest()


def test_a_server_that_is_lost_lets_the_next_one_start():
    """Though the request that was there has not ended; and its end, when it comes, frees nothing twice."""

    async def scene(stage: Stage) -> None:
        hangs = asyncio.ensure_future(stage.serve("hangs", seconds=50.0))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(stage.serve("second", seconds=100.0))
        stage.loop.later(10.0, stage.waiting.lost, "a")
        await asyncio.sleep(60.0)
        with pytest.raises(Refused):
            await stage.serve("third")
        await asyncio.gather(hangs, second)

    stage = played(scene)

    assert stage.log == [(0.0, "hangs starts"), (10.0, "second starts")]
    assert stage.at_rest()


def test_a_fault_in_deciding_leaves_no_request_behind():
    """Whoever came when it struck is told, and gone from the queue."""

    async def scene(stage: Stage) -> None:
        first = await stage.waiting.begin(ASK)
        decide, stage.admission.next = stage.admission.next, broken  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await stage.waiting.begin(ASK)
        stage.admission.next = decide  # type: ignore[method-assign]
        stage.waiting.leave(first)

    faults = 1

    def broken(now_s: float) -> Moves:
        nonlocal faults
        faults -= 1
        return NOTHING if faults < 0 else Moves([], [], 1 / 0)

    assert played(scene).at_rest()


def test_an_idle_gateway_makes_no_future_and_no_timer():
    """Who need not wait costs a few calls."""

    async def scene(stage: Stage) -> None:
        async with stage.waiting.place(ASK):
            stage.note(f"{len(stage.waiting)} futures, {len(stage.loop.timers())} timers")

    assert played(scene).log == [(0.0, "0 futures, 0 timers")]
