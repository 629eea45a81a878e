"""Small questions to servers, beside their streams."""

import asyncio
from typing import Any

import pytest

from gateway.asides import COUNTED_AT_ONCE_MAX, Asides
from gateway.stream.leg_end import Cause, LegEnd
from guards.refusal import Reason, Refused
from tests.gateway.stream.fakes import call_for

WAIT_S = 0.05
COUNTED = LegEnd(Cause.DONE, "", 200, b'{"count": 7}')


class Upstream:
    """Servers that answer when they are let: `asked` is how many questions are open, `most` how many were at once."""

    def __init__(self) -> None:
        self.answer, self.asked, self.most = asyncio.Event(), 0, 0

    async def fetch(self, target: object, path: str, body: bytes, timeout_s: float) -> LegEnd:
        self.asked += 1
        self.most = max(self.most, self.asked)
        try:
            await self.answer.wait()
        finally:
            self.asked -= 1
        return COUNTED


class Fleet:
    """One server."""

    @staticmethod
    def pick(model: str, avoid: frozenset[str]) -> str | None:
        return None if avoid else "a"


def asides(upstream: Upstream) -> Asides:
    targets: Any = {"a": None}
    fleet: Any = Fleet()
    wire: Any = upstream
    return Asides(fleet, wire, targets, WAIT_S)


async def test_no_more_prompts_are_counted_at_once_than_servers_can_bear():
    """Of all requests together: a prompt near a model's window takes a server as long as several short answers."""
    upstream = Upstream()
    asking = asides(upstream)
    counts = [asyncio.create_task(asking.counts(call_for())) for _ in range(3 * COUNTED_AT_ONCE_MAX)]
    await asyncio.sleep(WAIT_S / 5)
    upstream.answer.set()

    assert await asyncio.gather(*counts) == [[7]] * len(counts)
    assert upstream.most == COUNTED_AT_ONCE_MAX


async def test_a_prompt_waits_only_so_long_to_be_counted():
    """And takes nobody's place from then on; nor does one whose client hung up."""
    upstream = Upstream()
    asking = asides(upstream)
    counts = [asyncio.create_task(asking.counts(call_for())) for _ in range(COUNTED_AT_ONCE_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as refused:
        await asking.counts(call_for())
    counts.pop().cancel()
    await asyncio.sleep(0)
    upstream.answer.set()

    assert (refused.value.reason, refused.value.retry_after_s) == (Reason.OVERLOADED, 1.0)
    assert await asking.counts(call_for()) == [7]
    assert await asyncio.gather(*counts) == [[7]] * len(counts)
