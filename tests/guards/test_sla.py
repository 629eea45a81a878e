"""What a request is promised."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.attainment import Cell, Verdict
from guards.refusal import Reason, Refused
from guards.sla import ASKED_MS_MOST, Deadlines, Objective, Promise, ServiceClass, Slope, Tier, asked_s

CHAT = ServiceClass("chat", Objective(Slope(0.5, 0.001), 0.05, Slope(10.0, 0.1)), input_max=4000, output_max=1000)
LONG = ServiceClass("long", Objective(first=Slope(2.0, 0.001)), input_max=100_000)
BATCH = ServiceClass("batch", Objective())
GOLD = Tier("gold", (CHAT, LONG, BATCH), asked=Slope(0.2, 0.0005))
TOKENS = st.integers(0, 200_000)


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "name"),
    [(0, 0, "chat"), (4000, 1000, "chat"), (4001, 1000, "long"), (4000, 1001, "long"), (100_000, 10**6, "long")],
)
def test_the_first_class_that_takes_a_request_is_its_own(input_tokens, output_tokens, name):
    """By its own tokens, bounds included."""
    promise = GOLD.promise(input_tokens, input_tokens, output_tokens)

    assert promise is not None
    assert promise.service_class == name


def test_what_no_class_takes_and_what_is_promised_nothing_have_no_promise():
    """There is nothing to keep, nor to miss."""
    assert GOLD.promise(100_001, 1, 1) is None
    assert Tier("basic", (CHAT,)).promise(5000, 5000, 10) is None


def test_a_promise_grows_with_what_is_to_be_computed():
    """The first token by uncached tokens of the prompt, the last by those of the answer; a cached prefix is free."""
    assert GOLD.promise(3000, 1000, 200) == Promise("chat", Cell(12, 8), 1.5, 0.05, 30.0)
    assert GOLD.promise(3000, 0, 200) == Promise("chat", Cell(12, 8), 0.5, 0.05, 30.0)


@pytest.mark.parametrize(
    ("asked", "first_s", "total_s"),
    [(0.001, 0.7, 30.0), (0.9, 0.9, 30.0), (1.5, 1.5, 30.0), (5.0, 5.0, 33.5)],
    ids=["more than it may", "shorter", "as promised", "longer"],
)
def test_a_client_asks_for_what_its_tier_allows(asked, first_s, total_s):
    """Shorter down to a bound, longer without one; the whole may then take as much longer."""
    promise = GOLD.promise(3000, 1000, 200, asked)

    assert promise is not None
    assert (promise.first_s, promise.total_s) == pytest.approx((first_s, total_s))


def test_a_tier_that_may_not_ask_is_not_heard():
    """The header changes nothing then."""
    plain = Tier("basic", GOLD.classes)

    assert plain.promise(3000, 1000, 200, 0.01) == plain.promise(3000, 1000, 200)


def test_asking_is_enough_for_a_promise():
    """A class that promises nothing of its own keeps what was asked for."""
    promise = GOLD.promise(200_000, 1000, 1, 30.0)

    assert promise is not None
    assert (promise.service_class, promise.first_s, promise.between_s, promise.total_s) == ("batch", 30.0, None, None)


def test_an_answer_that_comes_as_a_whole_is_promised_its_last_token_alone():
    """Where its class promises that one; nobody sees its first."""
    assert GOLD.whole(3000, 200) == Promise("chat", Cell(12, 8), None, None, 30.0)
    assert (GOLD.whole(50_000, 200), GOLD.whole(200_000, 1)) == (None, None)
    assert Tier("basic", (CHAT,)).whole(5000, 1) is None


@pytest.mark.slow
@given(TOKENS, TOKENS, st.floats(1e-3, 600.0))
def test_asking_never_gets_less_than_the_tightest_of_class_and_tier(input_tokens, output_tokens, asked):
    """Whatever is asked for: not below the bound, but where the class itself is."""
    with_it = GOLD.promise(input_tokens, input_tokens, output_tokens, asked)
    without = GOLD.promise(input_tokens, input_tokens, output_tokens)

    assert with_it is not None
    assert with_it.first_s is not None
    own_s = inf if without is None or without.first_s is None else without.first_s
    assert GOLD.asked is not None
    assert with_it.first_s >= min(own_s, GOLD.asked.at(input_tokens))
    assert with_it.first_s in (asked, own_s, GOLD.asked.at(input_tokens))


def test_deadlines_are_times_of_the_clock_that_arrivals_are_of():
    """And there is none for what is not promised."""
    promise = Promise("chat", Cell(1, 1), 0.5, 0.05, None)

    assert promise.deadlines(1000.0) == Deadlines(1000.5, None)


@pytest.mark.parametrize(
    ("first_s", "between_s", "total_s", "verdict"),
    [
        (0.5, 0.05, 10.0, Verdict.KEPT),
        (0.5, None, 0.5, Verdict.KEPT),
        (0.51, 0.06, 11.0, Verdict.LATE_FIRST),
        (0.4, 0.06, 11.0, Verdict.SLOW),
        (0.4, 0.04, 11.0, Verdict.LATE_LAST),
    ],
)
def test_the_first_that_is_not_kept_names_the_verdict(first_s, between_s, total_s, verdict):
    """Bounds are included."""
    assert Promise("chat", Cell(1, 1), 0.5, 0.05, 10.0).judge(first_s, between_s, total_s) is verdict


def test_what_is_not_promised_is_always_kept():
    """However long it took."""
    assert Promise("x", Cell(1, 1), None, None, None).judge(inf, inf, inf) is Verdict.KEPT


@pytest.mark.parametrize(
    ("waited_s", "first_s", "verdict"),
    [
        (0.4, None, None),
        (0.6, None, Verdict.LATE_FIRST),
        (0.6, 0.4, None),
        (3.0, 0.6, Verdict.LATE_FIRST),
        (11.0, 0.4, Verdict.LATE_LAST),
    ],
)
def test_a_client_that_leaves_counts_only_where_something_was_broken(waited_s, first_s, verdict):
    """Else nobody knows what would have been."""
    assert Promise("chat", Cell(1, 1), 0.5, 0.05, 10.0).judge_left(waited_s, first_s) is verdict


@pytest.mark.parametrize("text", ["250", " 250 "])
def test_the_header_is_milliseconds(text):
    """A whole number of them; none where there is no header."""
    assert asked_s(text) == 0.25
    assert asked_s(None) is None
    assert asked_s(str(ASKED_MS_MOST)) == ASKED_MS_MOST / 1000


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e3", "soon", "٣", str(ASKED_MS_MOST + 1), "9" * 5000])
def test_a_header_that_is_none_is_refused_by_name(text):
    """With what is allowed, and the field that is wrong."""
    with pytest.raises(Refused, match="from 1 to 600000") as refused:
        asked_s(text)

    assert (refused.value.reason, refused.value.param) == (Reason.INVALID, "x-slo-ttft-ms")


@pytest.mark.parametrize(
    ("classes", "asked", "what"),
    [
        ((), None, "name at least one"),
        ((CHAT, CHAT), None, "each once"),
        ((CHAT._replace(input_max=0),), None, "class chat: input_max"),
        ((ServiceClass("a", Objective(Slope(0.0))),), None, "class a: times"),
        ((ServiceClass("a", Objective(Slope(1.0, -1.0))),), None, "class a: times"),
        ((ServiceClass("a", Objective(between_s=nan)),), None, "class a: times"),
        ((ServiceClass("a", Objective(total=Slope(inf))),), None, "class a: times"),
        ((CHAT,), Slope(-1.0), "asked: times"),
    ],
)
def test_a_tier_that_makes_no_sense_is_refused(classes, asked, what):
    """By the name of what is wrong."""
    with pytest.raises(ValueError, match=what):
        Tier("gold", classes, asked)
