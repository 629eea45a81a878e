"""Who may come in now: as often as the rates say, free of charge for who is refused, right at the end."""

import json

import pytest

from gateway.rates import BYTES_PER_TOKEN, FREE, Rates
from gateway.stream.call import Bounds, Call, Endpoint
from guards.estimate import AnswerLengths
from guards.rate import SECOND_NS, Counted, Rate, RateLine
from guards.refusal import Reason, Refused

REQUESTS = RateLine("key:a", Counted.REQUESTS, Rate(60, 60, 2))  # one a second, two at once
TOKENS = RateLine("org:acme", Counted.TOKENS, Rate(600, 60, 600))  # ten a second


class Clock:
    now_ns = 5 * SECOND_NS

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def rates(clock):
    return Rates(AnswerLengths(), clock)


def call(max_tokens=100, text="hello"):
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
    return Call(Endpoint.CHAT, json.dumps(body).encode(), "r1", Bounds())


def serve(rates, lines, used, **said):
    with rates.enter(call(**said), lines) as passage:
        passage.used = used
    return dict(passage.headers)


def refusal(rates, lines, **said):
    with pytest.raises(Refused) as refused:
        serve(rates, lines, 0, **said)
    return refused.value


def test_requests_come_in_as_often_as_the_rate_says(rates, clock):
    """A burst, then one for each interval; the refusal tells when, and what is left."""
    assert [serve(rates, [REQUESTS], 5)["x-ratelimit-remaining-requests"] for _ in range(2)] == ["1", "0"]

    refused = refusal(rates, [REQUESTS])
    clock.now_ns += SECOND_NS

    assert (refused.reason, refused.retry_after_s) == (Reason.RATE, 1.0)
    assert refused.headers == {
        "x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"
    }  # fmt: skip
    assert "60 requests per 60 s of key:a" in refused.detail
    assert serve(rates, [REQUESTS], 5)


def test_tokens_are_set_right_by_what_was_used(rates, clock):
    """What was taken too much is there again; what was used beyond it is waited for by who comes next."""
    left = int(serve(rates, [TOKENS], 20)["x-ratelimit-remaining-tokens"])
    assert left == 600 - (100 + call().body_bytes // BYTES_PER_TOKEN + 1)
    assert rates.headers([TOKENS], clock.now_ns)[1][1] == "580"

    serve(rates, [TOKENS], 700)
    refused = refusal(rates, [TOKENS])

    took = 100 + call().body_bytes // BYTES_PER_TOKEN + 1
    assert refused.retry_after_s == pytest.approx((20 + 700 + took - 600) / 10)
    assert rates.headers([TOKENS], clock.now_ns)[1:] == (
        ("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "1m12s")
    )  # fmt: skip


def test_to_be_refused_takes_nothing(rates, clock):
    """By the rates themselves or by a budget after them: no client is kept out by its own retries."""
    for _ in range(10):
        with pytest.raises(Refused, match="budget"), rates.enter(call(), [REQUESTS, TOKENS]):
            raise Refused(Reason.BUDGET, "budget exceeded")
    serve(rates, [REQUESTS, TOKENS], 500)
    for _ in range(10):
        refusal(rates, [REQUESTS, TOKENS], max_tokens=400)

    assert dict(rates.headers([REQUESTS, TOKENS], clock.now_ns))["x-ratelimit-remaining-requests"] == "1"
    assert dict(rates.headers([REQUESTS, TOKENS], clock.now_ns))["x-ratelimit-remaining-tokens"] == "100"


def test_a_request_that_never_fits_is_refused_for_good(rates):
    """With 400, so that nobody waits for it in vain."""
    refused = refusal(rates, [TOKENS], text="x" * 4 * 700)

    assert (refused.reason, refused.retry_after_s) == (Reason.INVALID, None)
    assert "600 tokens per 60 s of org:acme" in refused.detail


def test_of_two_rates_of_a_kind_the_tighter_is_told(rates):
    """The client cannot do more than that."""
    wide = RateLine("org:acme", Counted.REQUESTS, Rate(6_000, 60, 6_000))

    assert serve(rates, [wide, REQUESTS], 1)["x-ratelimit-limit-requests"] == "2"


def test_without_rates_nothing_is_counted(rates):
    """Nor made."""
    assert rates.enter(call(), ()) is FREE
    assert FREE.headers == ()


def test_others_long_answers_keep_nobody_out_for_ever(clock):
    """A guess that is more than the burst takes all of it, and gives back what was not used."""
    lengths = AnswerLengths()
    for _ in range(20):
        lengths.note("tiny", call().prompt_bound, 5_000)
    rates = Rates(lengths, clock)

    headers = serve(rates, [TOKENS], 30, max_tokens=None)

    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert serve(rates, [TOKENS], 30, max_tokens=100)["x-ratelimit-remaining-tokens"] > "4"
