"""Clients of an open loop: they come at their time, and say truly what became of them."""

from typing import Any

import pytest

from gateway.local.ports import free_ports
from guards.attainment import Cell, Verdict
from guards.sla import Promise
from tests.open_loop import Wish, offer

SOON = Promise("any", Cell(1, 1), first_s=20.0, between_s=20.0, total_s=None)
NEVER = Promise("any", Cell(1, 1), first_s=1e-6, between_s=None, total_s=None)


def wish(at_s: float = 0.0, promise: Promise = SOON, **order: Any) -> Wish:
    """A request that the stub answers as ordered."""
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 100, "stub": {"tokens": 12, **order}, **usage}
    return Wish(at_s, "somebody", "sk-any", body, promise)


async def test_an_answer_is_timed_and_counted(stub):
    """Its tokens, its first and its last one; and it is judged by what it was promised."""
    (kept,) = await offer(stub.port, [wish(ttft_s=0.05, tokens_per_s=100)], patience_s=20)
    (late,) = await offer(stub.port, [wish(promise=NEVER)], patience_s=20)

    assert (kept.status, kept.tokens, kept.whole, kept.left) == (200, 12, True, False)
    assert kept.first_s >= 0.05
    assert kept.last_s >= kept.first_s + 11 / 100 - 0.02
    assert kept.between_s == pytest.approx((kept.last_s - kept.first_s) / 11)
    assert (kept.verdict, late.verdict) == (Verdict.KEPT, Verdict.LATE_FIRST)


async def test_who_comes_later_does_not_wait_for_who_came_before(stub):
    """That is what an open loop is: a slow answer holds up nobody."""
    slow, soon = await offer(stub.port, [wish(ttft_s=0.2), wish(at_s=0.05)], patience_s=20)

    assert slow.first_s >= 0.2
    assert soon.wish.at_s == 0.05
    assert soon.lag_s < 0.15


async def test_who_is_not_answered_hangs_up(stub):
    """After its patience, and then its promise is not kept."""
    (left,) = await offer(stub.port, [wish(fault="silence")], patience_s=0.1)

    assert (left.left, left.whole, left.verdict) == (True, False, Verdict.LATE_LAST)


async def test_refusals_and_losses_are_told_apart(stub):
    """A status above 400 with its body; a stream that was cut; a port at which nobody is."""
    refused, cut = await offer(stub.port, [wish(fault="status", status=503), wish(0.01, fault="cut")], patience_s=20)
    (nobody,) = await offer(free_ports(1)[0], [wish()], patience_s=20)

    assert (refused.status, refused.verdict) == (503, Verdict.REFUSED)
    assert "Ordered by the test" in refused.said
    assert [one.verdict for one in (cut, nobody)] == [Verdict.LOST] * 2


async def test_who_waited_for_long_is_refused_by_an_event(start):
    """The head was sent with a comment by then: it is a refusal all the same, and no first token."""
    stub = start(tokens_per_s=1)
    refused, failed = await offer(stub.port, [wish(fault="error_then_done", at=at) for at in (0, 1)], patience_s=20)

    assert (refused.status, refused.refused, refused.first_s) == (200, True, None)
    assert refused.verdict is Verdict.REFUSED
    assert (failed.refused, failed.first_s is None) == (False, False)


@pytest.mark.parametrize(
    ("said", "at_once"),
    [
        ("expected in 6.5 s, of which 6.4 s are spent waiting for a server", True),
        ("4096 requests wait already.", True),
        ("expected in 5.1 s, of which 0.0 s are spent waiting for a server", False),
        ("This request has waited 5.0 s for a server", False),
    ],
)
async def test_a_refusal_says_whether_it_came_at_once(stub, said, at_once):
    """By its words: what was foreseen, and what was waited for."""
    (refused,) = await offer(stub.port, [wish(fault="status")], patience_s=20)
    refused.said = said

    assert refused.refused_at_once == at_once
