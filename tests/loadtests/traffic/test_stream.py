"""What became of an answer: times, tokens, and how far it came."""

import json

import pytest

from loadtests.traffic.buckets import quantile_s
from loadtests.traffic.record import Record, Stage
from loadtests.traffic.stream import Watch, refused


def record() -> Record:
    return Record(sent_s=0.0, scenario="chat", stage=Stage.UNFINISHED)


def event(**said: object) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def said(text: str = "", ids: list[int] | None = None, finish: str | None = None, index: int = 0) -> bytes:
    return event(choices=[{"index": index, "delta": {"content": text}, "token_ids": ids, "finish_reason": finish}])


def usage(tokens: int, cached: int = 0) -> bytes:
    told = {"prompt_tokens": 9, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}
    return event(choices=[], usage=told)


DONE = b"data: [DONE]\n\n"
ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])


def test_a_whole_answer_is_measured_by_when_its_tokens_came():
    """A role is no token; gaps are between events with tokens; usage is held against ids."""
    watch = Watch(record())
    for at_s, data in ((0.1, ROLE), (0.2, said("a", [1])), (0.3, said("b", [2, 3])), (0.7, said("", [4], "stop"))):
        watch.feed(data, at_s)
    watch.feed(usage(4, cached=5) + DONE, 0.8)
    found = watch.end(0.9)

    assert (found.stage, found.tokens, found.counted, found.cached_tokens) == (Stage.WHOLE, 4, True, 5)
    assert (found.first_s, found.last_s, found.end_s) == (0.2, 0.7, 0.9)
    assert found.per_token_s == pytest.approx(0.5 / 3)
    assert found.gap_max_s == pytest.approx(0.4)
    assert quantile_s(found.gaps, 0.5) == pytest.approx(0.1, rel=0.05)
    assert watch.text == "ab"


@pytest.mark.parametrize(
    ("data", "stage", "words"),
    [
        (said("a", [1], "stop") + usage(1), Stage.TRUNCATED, "without [DONE]"),
        (said("a", [1]) + usage(1) + DONE, Stage.TRUNCATED, "without finish reason"),
        (said("a", [1], "stop") + usage(1) + DONE + b"data: x", Stage.TRUNCATED, "inside an event"),
        (said("a", [1], "stop") + DONE, Stage.ACCOUNTING, "usage is missing"),
        (said("a", [1, 2], "stop") + usage(3) + DONE, Stage.ACCOUNTING, "usage says 3 tokens, 2 came"),
        (said("a") + said("b", finish="stop") + usage(1) + DONE, Stage.ACCOUNTING, "usage says 1 tokens, 2 came"),
        (said("a") + said("", finish="stop") + usage(7) + DONE, Stage.WHOLE, ""),
        (said("a", [1], "abort") + usage(1) + DONE, Stage.MID_STREAM, "finish reason abort"),
        (event(error={"message": "gone", "code": 500}) + DONE, Stage.BEFORE_FIRST, "gone"),
        (said("a", [1]) + event(error={"message": "gone", "code": 500}) + DONE, Stage.MID_STREAM, "gone"),
        (said("a", [1]) + b"data: \xff{\n\n", Stage.MID_STREAM, "unreadable"),
        (said("a", [1]) + b"data: []\n\n", Stage.MID_STREAM, "unreadable"),
    ],
)
def test_what_is_not_whole_is_told_by_how_far_it_came(data, stage, words):
    """An SDK takes a truncated stream for success; this does not."""
    watch = Watch(record())
    watch.feed(data, 0.1)
    found = watch.end(0.2)

    assert found.stage is stage
    assert words in found.said


def test_all_choices_must_finish():
    """One of two that has no finish reason is one that was cut."""
    watch = Watch(record(), choices=2)
    watch.feed(said("a", [1], "stop") + said("b", [2], index=1) + usage(2) + DONE, 0.1)

    assert watch.end(0.2).stage is Stage.TRUNCATED


def test_a_lost_connection_and_a_hang_up_are_two_things():
    """Before the first token, in the middle, and by the client's own will."""
    none, some, left = (Watch(record()) for _ in range(3))
    some.feed(said("a", [1]), 0.1)
    left.feed(said("a", [1]), 0.1)

    assert none.end(0.2, lost="reset").stage is Stage.BEFORE_FIRST
    assert some.end(0.2, lost="reset").stage is Stage.MID_STREAM
    assert left.end(0.2, left=True).stage is Stage.LEFT
    assert left.tokens == 1


@pytest.mark.parametrize(
    ("may_stop", "refusal", "cut"), [(True,) + (Stage.STOPPED,) * 2, (False, Stage.REFUSED, Stage.MID_STREAM)]
)
def test_a_budget_that_stops_a_runaway_is_no_error(may_stop, refusal, cut):
    """Refused, or ended in the middle: as it was to be, and only there."""
    body = json.dumps({"error": {"message": "spent", "code": "budget_exceeded", "type": "insufficient_quota"}}).encode()
    watch = Watch(record())
    watch.feed(said("a", [1]) + b"data: " + body + b"\n\n", 0.1)

    found = refused(record(), 402, body, 0.1, may_stop=may_stop)
    assert (found.stage, found.status, found.code, found.said) == (refusal, 402, "budget_exceeded", "spent")
    assert refused(record(), 403, body, 0.1, may_stop=may_stop).stage is refusal  # which statuses is a gateway's choice
    assert watch.end(0.2, may_stop=may_stop).stage is cut


@pytest.mark.parametrize("body", [b"<html>bad gateway", b"\xff", b"[]", b'{"error": "no"}', b'{"detail": 1}'])
def test_a_refusal_in_any_shape_is_one(body):
    """Proxies answer pages, servers answer what they like."""
    assert refused(record(), 502, body, 0.1, may_stop=True).stage is Stage.REFUSED
    assert refused(record(), 403, body, 0.1, may_stop=True).stage is Stage.REFUSED
