"""Least squares that forget."""

from math import isfinite
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.squares import KEEP, SOLVED_EVERY, Squares

FINITE = st.floats(-1e6, 1e6)


def taught(truth: tuple[float, ...], notes: int, *, model: Squares | None = None, seed: int = 1) -> Squares:
    """A model that has seen so many observations of the truth."""
    rng, one = Random(seed), model or Squares((0.0,) * len(truth))
    for _ in range(notes):
        x = tuple(rng.uniform(-1, 1) for _ in truth)
        one.note(x, sum(a * b for a, b in zip(truth, x, strict=True)), 1.0)
    return one


def test_a_line_is_found():
    """After some observations of a line the model is that line."""
    assert taught((3.0, -2.0, 0.5), 20 * SOLVED_EVERY).model == pytest.approx((3.0, -2.0, 0.5), abs=0.02)


def test_it_begins_where_it_was_told():
    """Nothing seen, nothing changed; and in a direction in which nothing is seen it stays there."""
    one = Squares((1.0, 5.0))
    before = one.model
    for _ in range(100 * SOLVED_EVERY):
        one.note((1.0, 0.0), 2.0, 1.0)

    assert before == (1.0, 5.0)
    assert one.model == pytest.approx((2.0, 5.0), abs=0.01)


def test_what_cannot_be_told_apart_shares_alike():
    """Of two that always come together, neither is given all: the ridge holds both to the start."""
    one = Squares((0.0, 0.0))
    for _ in range(20 * SOLVED_EVERY):
        one.note((1.0, 1.0), 3.0, 1.0)

    assert one.model == pytest.approx((1.5, 1.5), abs=0.02)


def test_what_was_true_once_is_forgotten():
    """After several times as many observations as are remembered the model is of the new truth."""
    changed = taught((-1.0, 4.0), int(7 / (1 - KEEP)), model=taught((3.0, 2.0), 1000), seed=2)

    assert changed.model == pytest.approx((-1.0, 4.0), abs=0.02)


def test_it_does_not_wind_up():
    """However long one thing alone was seen, a surprise moves the model no further than to where it lies itself."""
    one = Squares((0.0, 0.0, 0.0))
    for _ in range(20_000):
        one.note((1.0, 0.0, 0.0), 1.0, 1.0)
    for _ in range(SOLVED_EVERY):
        one.note((1.0, 1e-3, 0.0), 1.001, 1.0)

    assert max(map(abs, one.model)) < 2.0


@pytest.mark.slow
@given(st.lists(st.tuples(FINITE, FINITE, FINITE, st.floats(0.0, 1e6)), max_size=5 * SOLVED_EVERY))
def test_it_is_always_a_number(seen):
    """Whatever was seen, however far beyond all measure, the model is finite."""
    one = Squares((0.0, 1.0))
    for a, b, y, weight in seen:
        one.note((a, b), y, weight)

    assert all(map(isfinite, one.model))


def test_a_model_that_is_no_number_any_more_begins_anew():
    """What cannot be computed with is forgotten, with all that it was mixed with."""
    one = taught((3.0, 2.0), 1000)
    for _ in range(SOLVED_EVERY):
        one.note((1.0, 1.0), float("nan"), 1.0)

    assert one.model == (0.0, 0.0)
    assert taught((3.0, 2.0), 1000, model=one).model == pytest.approx((3.0, 2.0), abs=0.02)
