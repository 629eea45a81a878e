"""When a waiting client gets a comment. Time is simulated."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.http.pings import LOOKS, Pings
from tests.sim.loop import SimLoop

EVERY_S = 15.0
LATEST_S = EVERY_S * (LOOKS + 1) / LOOKS


class Stream:
    """Notes when it got a comment."""

    def __init__(self) -> None:
        self.quiet = False
        self.pinged_at: list[float] = []

    def ping(self) -> None:
        self.pinged_at.append(asyncio.get_running_loop().time())
        self.quiet = False


def simulated(scene: Callable[[], Awaitable[None]]) -> None:
    loop = SimLoop()
    try:
        loop.run_until_complete(scene())
    finally:
        loop.close()


def test_a_quiet_stream_gets_a_comment_after_a_while_and_then_again():
    """No sooner than it was said, and a fifth later at most, after whatever was sent last."""

    async def scene() -> None:
        pings, stream = Pings(EVERY_S), Stream()
        await asyncio.sleep(1.7)
        pings.add(stream)
        await asyncio.sleep(70)
        pings.forget(stream)

        waits = [later - sooner for sooner, later in zip([1.7, *stream.pinged_at], stream.pinged_at, strict=False)]
        assert len(waits) >= 70 // LATEST_S
        assert all(EVERY_S - 1e-3 <= wait <= LATEST_S + 1e-3 for wait in waits)

    simulated(scene)


@pytest.mark.parametrize("after_s", [0.1, 2.9, 3.1, 14.0])
def test_a_stream_that_says_something_is_let_alone(after_s):
    """Each write begins the wait anew, wherever between two looks it falls."""

    async def scene() -> None:
        pings, stream = Pings(EVERY_S), Stream()
        pings.add(stream)
        for _ in range(20):
            await asyncio.sleep(after_s)
            stream.quiet = False  # as a write does
        last_s = asyncio.get_running_loop().time()
        await asyncio.sleep(LATEST_S + 0.1)

        assert EVERY_S - 1e-3 <= stream.pinged_at[0] - last_s <= LATEST_S + 1e-3

    simulated(scene)


def test_nobody_is_looked_after_who_is_forgotten():
    """And the timer ends with the last one."""

    async def scene() -> None:
        pings, stream = Pings(EVERY_S), Stream()
        pings.add(stream)
        pings.forget(stream)
        await asyncio.sleep(100)

        assert stream.pinged_at == []
        assert pings._timer is None

    simulated(scene)


def test_pings_can_be_switched_off():
    """Then no timer runs at all."""

    async def scene() -> None:
        pings, stream = Pings(0), Stream()
        pings.add(stream)
        await asyncio.sleep(100)

        assert (stream.pinged_at, pings._timer) == ([], None)

    simulated(scene)
