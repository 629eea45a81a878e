"""A queue that gives out the least first, whatever is taken out of its middle, and keeps nothing of that."""

import gc
import random
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.ranking import SLACK, Ranking

STEPS = st.lists(st.tuples(st.sampled_from(["rank", "discard", "pop"]), st.integers(0, 9), st.integers(0, 5)))


@given(STEPS)
def test_the_least_comes_first_and_equals_in_their_order(steps):
    """As a sorted list would have it, in which an item is once at most."""
    ranking, model = Ranking(), []
    for number, (what, item, key) in enumerate(steps):
        if what == "rank":
            ranking.rank(item, float(key))
            model = [one for one in model if one[2] != item] + [(float(key), number, item)]
        elif what == "discard":
            assert ranking.discard(item) == any(one[2] == item for one in model)
            model = [one for one in model if one[2] != item]
        else:
            expected = min(model, default=(None, None, None))
            assert ranking.pop() == expected[2]
            model = [one for one in model if one is not expected]
        assert ranking.first() == min(model, default=(None, None, None))[2]
        assert len(ranking) == len(model)
        assert all(ranking.key(item) == key for key, _, item in model)


@pytest.mark.parametrize("take", [Ranking.discard, lambda ranking, item: ranking.pop()], ids=["discard", "pop"])
def test_a_queue_that_is_empty_holds_nothing(take):
    """Whoever left it last, and however; it may not be asked again for long."""

    class Item:
        pass

    ranking, item = Ranking(), Item()
    ranking.rank(item, 2.0)
    ranking.rank(item, 1.0)
    held = weakref.ref(item)

    take(ranking, item)
    del item
    gc.collect()

    assert held() is None


def test_what_was_taken_out_is_let_go_of():
    """A queue of which nearly everybody leaves has entries for about as many as stay."""
    ranking, rng = Ranking(), random.Random(1)
    for item in range(20_000):
        ranking.rank(item, rng.random())
        if item >= 10:
            ranking.discard(item - 10)

    assert len(ranking) == 10
    assert len(ranking._heap) <= 2 * len(ranking) + SLACK
