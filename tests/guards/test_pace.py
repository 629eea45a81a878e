"""How long work waits, learnt from how fast such work was taken up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.pace import HALF_S, KNOWN_S, Pace


def paced(tokens_per_s: float, seconds: float, pace: Pace | None = None, since_s: float = 0.0, step_s: float = 0.1):
    """Work that is taken up at a pace, while something waits."""
    pace = pace or Pace()
    pace.note(since_s, busy=True)
    for number in range(1, round(seconds / step_s) + 1):
        pace.note(since_s + number * step_s, round(tokens_per_s * step_s), busy=True)
    return pace


@given(st.floats(100.0, 1e6), st.floats(1.5, 100.0))
def test_a_steady_pace_is_learnt(tokens_per_s, seconds):
    """So much work takes so long."""
    pace = paced(tokens_per_s, seconds)

    assert pace.seconds(10 * tokens_per_s, round(seconds / 0.1) * 0.1) == pytest.approx(10.0, rel=0.1)


def test_nothing_is_said_before_enough_was_seen():
    """A second of busy time is needed."""
    assert paced(1_000, KNOWN_S / 2).seconds(1_000, KNOWN_S / 2) is None


def test_a_slow_beginning_is_no_pace():
    """Something began to wait, and the first long answers take their time: that says nothing yet."""
    pace = paced(1_000, 0.4)
    pace.note(30.0, busy=True)

    assert pace.seconds(1_000, 30.0) is None


def test_idle_time_does_not_count():
    """Servers to whom nobody sends anything are not slow."""
    pace = paced(1_000, 5.0)
    pace.note(5.0, busy=False)
    pace = paced(1_000, 5.0, pace, since_s=500.0)

    assert pace.seconds(1_000, 505.0) == pytest.approx(1.0, rel=0.05)


def test_a_standstill_is_seen_while_it_lasts():
    """Nothing is taken up any more: every second adds to what work will take."""
    pace = paced(1_000, 5.0)

    assert pace.seconds(1_000, 105.0) > 10 * pace.seconds(1_000, 5.0)


def test_a_pace_that_changed_is_learnt_anew():
    """Five half-lives later the old one is next to nothing."""
    pace = paced(1_000, 50.0)
    paced(10_000, 5 * HALF_S, pace, since_s=50.0)

    assert pace.seconds(10_000, 50.0 + 5 * HALF_S) == pytest.approx(1.0, rel=0.05)
