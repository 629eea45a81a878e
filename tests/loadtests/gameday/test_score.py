"""The score of a game day: no zero hides in it, and nothing that was not tried counts as passed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.gameday.scenario import Probe, trials
from loadtests.gameday.score import Outcome, Verdict, judged, total, tried_weight, wilson, worst_first

WHOLE = Probe("whole", 8, 8)


def outcome(name: str, *probes: Probe, weight: int = 5, verdict: Verdict | None = None) -> Outcome:
    return Outcome(name, name, "all is well", weight, "for tests", verdict or judged(probes), probes)


def score(*outcomes: Outcome) -> float:
    share = total(outcomes)
    assert share is not None
    return share.share


def test_one_zero_makes_all_of_it_zero_whatever_its_weight():
    """Eleven whole scenarios of weight 10 do not make up for one of weight 1 that never held."""
    whole = [outcome(str(number), WHOLE, weight=10) for number in range(11)]

    assert score(*whole, outcome("zero", Probe("never", 0, 8), weight=1)) == 0.0


def test_equal_shares_are_the_score():
    """Where every scenario held in three of four trials, the score is three quarters."""
    assert score(*(outcome(str(weight), Probe("some", 6, 8), weight=weight) for weight in (1, 5, 10))) == 0.75


def test_a_half_costs_more_than_a_quarter():
    """What the documentation says of one scenario at a half among nine whole ones."""
    whole = [outcome(str(number), WHOLE) for number in range(9)]

    assert score(*whole, outcome("half", Probe("half", 4, 8))) < 0.75


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=12))
def test_the_score_lies_between_the_worst_and_the_mean(drawn):
    """It is never less than the worst share, and never more than their weighted mean; and within its own bounds."""
    outcomes = [outcome(str(n), Probe("p", min(p, t), t), weight=w) for n, (w, p, t) in enumerate(drawn)]
    shares = [min(p, t) / t for _, p, t in drawn]
    mean = sum(w * share for (w, _, _), share in zip(drawn, shares, strict=True)) / sum(w for w, _, _ in drawn)

    whole = total(outcomes)

    assert whole is not None
    assert min(shares) - 1e-9 <= whole.share <= mean + 1e-9
    assert whole.low - 1e-9 <= whole.share <= whole.high + 1e-9


def test_a_scenario_is_as_good_as_its_worst_probe():
    """A stream that is equal does not make up for one that is charged twice."""
    one = outcome("one", Probe("equal", 100, 100), Probe("charged", 1, 2))

    assert one.share == wilson(Probe("charged", 1, 2))
    assert one.verdict is Verdict.BROKEN


@pytest.mark.parametrize("verdict", [Verdict.NOT_TRIED, Verdict.NO_STEADY_STATE, Verdict.FAILED])
def test_what_came_to_no_verdict_counts_for_nothing_and_is_told(verdict):
    """It neither lifts nor lowers the score; how much weight was tried says that something is missing."""
    half, none = outcome("half", Probe("half", 4, 8), weight=6), outcome("none", WHOLE, weight=4, verdict=verdict)

    assert none.share is None
    assert score(half, none) == 0.5
    assert tried_weight([half, none]) == 0.6
    assert total([none]) is None


def test_what_was_broken_off_by_its_limit_is_a_zero():
    """A scenario that was not over in its time has no probes, and a share of nothing."""
    late = outcome("late", verdict=Verdict.BROKEN)

    assert score(outcome("whole", WHOLE), late) == 0.0


@pytest.mark.parametrize(
    ("passed", "tried", "low", "high"), [(8, 8, 0.6756, 1.0), (0, 8, 0.0, 0.3244), (5, 10, 0.2366, 0.7634)]
)
def test_wilsons_interval(passed, tried, low, high):
    """As tables have it: of few trials it is wide, and never beyond 0 and 1."""
    share = wilson(Probe("p", passed, tried))

    assert (round(share.low, 4), round(share.high, 4)) == (low, high)


def test_nothing_tried_holds_nothing():
    """A probe without a trial, and a scenario without a probe, are no pass."""
    assert judged([]) is Verdict.BROKEN
    assert judged([WHOLE, Probe("empty", 0, 0)]) is Verdict.BROKEN
    assert outcome("one", WHOLE, Probe("empty", 0, 0)).share == wilson(Probe("empty", 0, 0))
    assert judged([WHOLE]) is Verdict.HELD


def test_worst_comes_first():
    """What ended without a verdict, then by share, of equal ones the heaviest, then what was not tried."""
    given = [
        outcome("whole", WHOLE), outcome("not tried", verdict=Verdict.NOT_TRIED), outcome("heavy", WHOLE, weight=9),
        outcome("half", Probe("half", 4, 8)), outcome("failed", verdict=Verdict.FAILED),
    ]  # fmt: skip

    assert [one.name for one in worst_first(given)] == ["failed", "half", "heavy", "whole", "not tried"]


def test_trials_say_what_was_seen_of_those_that_did_not_hold():
    """Of those alone, each once."""
    assert trials("p", [True, False, False], ["fine", "late", "late"]) == Probe("p", 1, 3, "late")
