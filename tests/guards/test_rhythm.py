"""What is usual between a server's tokens, and from what silence on to worry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.rhythm import WINDOW, Rhythm

BUCKET = 1.25  # a bucket's upper bound is at most so many times its lower one
MEASURED_S = st.floats(0.0005, 127.0)  # told apart; below and above gaps share a bucket
ANY_S = st.floats(0.0, 1000.0)


def rhythm(gaps_s: list[float] | tuple[float, ...] = (), **said: float) -> Rhythm:
    """A rhythm that has seen these gaps."""
    one = Rhythm(**{"unknown_s": 1.0, "least_s": 0.05} | said)
    for gap_s in gaps_s:
        one.note([gap_s])
    return one


@given(st.lists(MEASURED_S, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 0.999, 1.0]))
def test_a_quantile_is_right_within_one_bucket(gaps_s, share):
    """It is never below the true one, and above it by one bucket at most."""
    above = int(len(gaps_s) * (1.0 - share))  # gaps that may be longer
    true_s = sorted(gaps_s, reverse=True)[min(above, len(gaps_s) - 1)]

    assert true_s <= rhythm(gaps_s).quantile_s(share) <= true_s * BUCKET


@given(st.lists(ANY_S, max_size=50))
def test_gaps_beyond_all_bounds_are_taken_in(gaps_s):
    """What is too short or too long to be told apart is still counted on its side; no gap is misplaced."""
    one = rhythm(gaps_s)

    assert all(one.quantile_s(1.0) >= min(gap_s, 128.0) for gap_s in gaps_s)
    assert one.quantile_s(1.0) <= max([0.0007, *gaps_s]) * BUCKET if gaps_s else one.quantile_s(1.0) == 0.0


def test_patience_is_unknown_then_learnt():
    """Before enough gaps were seen, patience is what the operator guessed; then three times p99.9."""
    fresh, learnt = rhythm([0.1] * 99), rhythm([0.1] * 100)

    assert fresh.patience_s == 1.0
    assert 0.3 <= learnt.patience_s <= 0.3 * BUCKET


def test_patience_has_a_floor():
    """However fast a server is, shorter silences than this are never suspicious."""
    assert rhythm([0.001] * 100, least_s=0.25).patience_s == 0.25


def test_one_slow_gap_in_a_thousand_is_not_what_is_usual():
    """p99.9 is not the maximum: a lone stall among a thousand gaps leaves patience as it was, several raise it."""
    lone = rhythm([0.1] * 1100 + [5.0] + [0.1] * 99)
    several = rhythm([0.1] * 1100 + [5.0] * 3 + [0.1] * 97)

    assert lone.patience_s <= 0.3 * BUCKET
    assert several.patience_s >= 15.0


@pytest.mark.parametrize(("before_s", "after_s"), [(2.0, 0.02), (0.02, 2.0)])
def test_what_was_usual_once_is_forgotten(before_s, after_s):
    """A server that turned fast, or slow, is judged by what it is now, after two windows at most."""
    one = rhythm([before_s] * 5 * WINDOW)

    for _ in range(2 * WINDOW + 200):
        one.note([after_s])

    assert 3 * after_s <= one.patience_s <= 3 * after_s * BUCKET


def test_a_server_that_turns_slow_is_learnt_long_before_the_rest_is_forgotten():
    """A few slow gaps are enough to be patient: a wrong suspicion costs more than a late one."""
    one = rhythm([0.02] * 5 * WINDOW)

    for _ in range(100):
        one.note([1.0])

    assert one.patience_s >= 3.0


@pytest.mark.parametrize(("usual_s", "least_s", "most_s"), [(0.1, 0.3, 0.375), (0.6, 1.0, 1.0), (1.6, 1.6, 2.0)])
def test_patience_has_a_ceiling_that_only_the_server_itself_can_lift(usual_s, least_s, most_s):
    """Three times p99.9, but no more than the ceiling; where p99.9 is above it, that and no more."""
    assert least_s <= rhythm([usual_s] * 200, most_s=1.0).patience_s <= most_s
