"""Small questions to servers, beside their streams."""

import asyncio
from typing import Any

import pytest

from gateway.asides import COUNTED_AT_ONCE_MAX, OWN_AT_ONCE_MAX, Asides
from gateway.stream.call import Endpoint
from gateway.stream.leg_end import Cause, LegEnd
from guards.refusal import Reason, Refused
from tests.gateway.stream.fakes import call_for

WAIT_S = 0.25
COUNTED = LegEnd(Cause.DONE, "", 200, b'{"count": 7}')
TOO_LONG = LegEnd(Cause.REFUSED, "", 400, b"{}")


class Upstream:
    """Servers that answer when they are let: `asked` is how many questions are open, `most` how many were at once."""

    def __init__(self, said: LegEnd = COUNTED) -> None:
        self.answer, self.asked, self.most, self.said = asyncio.Event(), 0, 0, said

    async def fetch(self, target: object, path: str, body: bytes, timeout_s: float) -> LegEnd:
        self.asked += 1
        self.most = max(self.most, self.asked)
        try:
            await self.answer.wait()
        finally:
            self.asked -= 1
        return self.said


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


async def test_many_prompts_of_one_request_leave_others_their_turn():
    """However many there are, they wait for each other and not against a clock."""
    upstream = Upstream()
    asking = asides(upstream)
    prompts = [f"prompt {number}" for number in range(50)]
    many = asyncio.create_task(asking.counts(call_for(endpoint=Endpoint.COMPLETIONS, prompt=prompts)))
    await asyncio.sleep(2 * WAIT_S)
    asked = upstream.asked
    other = asyncio.create_task(asking.counts(call_for()))
    await asyncio.sleep(0.001)
    beside = upstream.asked
    upstream.answer.set()

    assert (asked, beside) == (OWN_AT_ONCE_MAX, OWN_AT_ONCE_MAX + 1)
    assert await many == [7] * 50
    assert await other == [7]


async def test_a_model_whose_servers_do_not_count_keeps_no_other_from_it():
    """Each has its own places."""
    upstream = Upstream()
    asking = asides(upstream)
    stuck = [asyncio.create_task(asking.counts(call_for(model="stuck"))) for _ in range(2 * COUNTED_AT_ONCE_MAX)]
    await asyncio.sleep(0.001)
    other = asyncio.create_task(asking.counts(call_for()))
    await asyncio.sleep(0.001)

    assert upstream.asked == COUNTED_AT_ONCE_MAX + 1
    upstream.answer.set()
    assert await other == [7]
    await asyncio.gather(*stuck)


async def test_of_a_prompt_that_is_refused_the_rest_is_not_counted():
    """Its request is over; what it still asked would be in others' way."""
    upstream = Upstream(TOO_LONG)
    upstream.answer.set()
    prompts = [f"prompt {number}" for number in range(50)]
    with pytest.raises(Refused):
        await asides(upstream).counts(call_for(endpoint=Endpoint.COMPLETIONS, prompt=prompts))
    await asyncio.sleep(0)

    assert upstream.asked == 0
    assert upstream.most <= OWN_AT_ONCE_MAX
