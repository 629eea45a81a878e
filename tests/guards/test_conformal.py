"""A quantile that is exceeded as often as it should be."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.conformal import ENOUGH, MISSES, WINDOW, Conformal


def misses(values: Callable[[int, Random], float], *, late: int = 0, count: int = 5000) -> float:
    """The share of values above the threshold that was said of each; its outcome is noted so many values later."""
    one, rng, waiting, missed = Conformal(0.01), Random(1), [], 0
    one.note(values(0, rng))
    for at in range(1, count):
        value = values(at, rng)
        above = value > one.threshold
        missed += above
        waiting.append((value, above))
        if len(waiting) > late:
            value, above = waiting.pop(0)
            one.adapt(above)
            one.note(value)
    return missed / count


STREAMS = {
    "steady": lambda at, rng: rng.gauss(0, 1),
    "heavy tails": lambda at, rng: rng.paretovariate(1.1),
    "drift": lambda at, rng: at / 500 + rng.gauss(0, 1),
    "jumps": lambda at, rng: 10.0 * (at // 1000 % 2) + rng.gauss(0, 1),
    "ever wider": lambda at, rng: (1 + at / 500) * rng.gauss(0, 1),
}


@pytest.mark.parametrize("late", [0, 50])
@pytest.mark.parametrize("stream", STREAMS)
def test_one_of_ten_is_above(stream, late):
    """Whether values stay as they are, drift or jump, and also where outcomes come late."""
    assert misses(STREAMS[stream], late=late) == pytest.approx(MISSES, abs=0.01)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=100))
def test_the_threshold_is_a_value_that_was_seen(values):
    """It is one of those remembered, whatever came of the guesses."""
    one = Conformal(0.5)
    for at, value in enumerate(values):
        one.note(value)
        one.adapt(at % 3 == 0)

    assert one.threshold in values
    assert one.plain in values
    assert one.most == max(values)


def test_it_remembers_so_many_and_no_more():
    """The oldest goes when another comes: what was there before the window is of no account."""
    one = Conformal(0.01)
    for _ in range(100):
        one.note(1e6)
    for at in range(WINDOW):
        one.note(float(at % 10))

    assert len(one._ranked) == len(one._order) == WINDOW
    assert one.most == 9.0


def test_a_long_run_of_misses_does_not_wind_up():
    """After ten thousand misses it takes no more hits to be as before than after a hundred."""
    long, short = Conformal(0.01), Conformal(0.01)
    for one, times in ((long, 10_000), (short, 100)):
        for at in range(100):
            one.note(float(at))
        for _ in range(times):
            one.adapt(True)

    assert long._share == short._share
    assert long.threshold == 99.0


def test_it_adapts_faster_to_begin_with():
    """Of a kind of which little was seen; after many values as slowly as it was told."""
    eager, steady = Conformal(0.001, early=0.2), Conformal(0.001)
    for _ in range(20):
        eager.adapt(True)
        steady.adapt(True)
    shares = (eager._share, steady._share)
    for one in (eager, steady):
        one._adapted = 100_000
        one._share = 0.1
        one.adapt(True)

    assert shares[0] < 0.0 < shares[1]
    assert eager._share == steady._share


def test_enough_is_stated():
    """It says when it has seen enough to be asked."""
    one = Conformal(0.01)
    before = []
    for at in range(ENOUGH):
        before.append(one.enough)
        one.note(float(at))

    assert (any(before), one.enough) == (False, True)
