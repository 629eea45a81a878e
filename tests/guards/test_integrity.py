"""Totals of corrupt pages, and when they speak against a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.integrity import SLICES, Corruption, Plan

PLAN = Plan(pages_max=10, window_s=600.0)
STEP_S = PLAN.window_s / SLICES  # how exactly the window is kept


def seen(*looks: tuple[float, int], plan: Plan = PLAN) -> Corruption:
    """What so many looks come to: at a time, a total."""
    corruption = Corruption(plan)
    for now_s, total in looks:
        corruption.note(total, 1, now_s)
    return corruption


def test_a_server_is_drained_for_more_pages_than_the_plan_allows():
    """At the limit it is not; with one more it is, and the words say how many, and in which time."""
    assert seen((0, 0), (5, 4), (300, 10)).drained is None
    assert seen((0, 0), (5, 4), (300, 11)).drained == "11 corrupt pages in 600 s"


def test_only_what_is_new_within_the_window_counts():
    """A server that has had a bad page now and then for months is well: it is the rate that counts."""
    corruption = seen(*((second, second // 100) for second in range(0, 100_000, 5)))

    assert corruption.drained is None
    assert corruption.lately(100_000.0) == 5  # of the last 590 s


def test_what_was_found_leaves_the_window():
    """Exactly to a sixtieth of it."""
    corruption = seen((0, 0), (5, 4))

    assert corruption.lately(5 + PLAN.window_s - STEP_S) == 4
    assert corruption.lately(5 + PLAN.window_s + STEP_S) == 0


def test_the_first_look_only_says_where_to_count_from():
    """A gateway that was started anew does not know when those pages went bad."""
    corruption = seen((0, 5000), (5, 5003))

    assert (corruption.drained, corruption.lately(5.0)) == (None, 3)


def test_a_quiet_time_does_not_bring_a_server_back():
    """It has little to find while it gets no requests, so that proves nothing."""
    corruption = seen((0, 0), (5, 11), (10_000, 11))

    assert corruption.lately(10_000.0) == 0
    assert corruption.drained == "11 corrupt pages in 600 s"


def test_a_total_that_falls_is_that_of_an_engine_which_was_started_anew():
    """It brings the server back; what the new engine has found already is counted, and may drain it again."""
    back, again = seen((0, 0), (5, 11), (10, 2)), seen((0, 0), (5, 50), (10, 12))

    assert (back.drained, back.lately(10.0)) == (None, 2)
    assert (again.drained, again.lately(10.0)) == ("12 corrupt pages in 600 s", 12)


def test_a_fall_is_no_corruption():
    """Neither negative nor any."""
    corruption = seen((0, 100), (5, 0), (10, 0))

    assert (corruption.drained, corruption.lately(10.0)) == (None, 0)


def test_a_sum_over_other_engines_is_no_rise_and_no_fall():
    """An engine that does not answer takes its share of the sum away, and brings it back: nothing happened."""
    corruption = Corruption(PLAN)
    for now_s, total, engines in ((0, 0, 2), (5, 30, 2), (10, 0, 1), (15, 30, 2)):
        corruption.note(total, engines, now_s)

    assert (corruption.drained, corruption.lately(15.0)) == ("30 corrupt pages in 600 s", 30)

    calm = Corruption(PLAN)
    for now_s, total, engines in ((0, 30, 2), (5, 0, 1), (10, 30, 2)):
        calm.note(total, engines, now_s)
    assert (calm.drained, calm.lately(10.0)) == (None, 0)


def test_what_was_found_over_a_long_gap_is_thinned_to_its_rate():
    """Eleven pages in the ten hours in which nobody could ask are no eleven in ten minutes."""
    assert seen((0, 0), (36_000, 11)).lately(36_000.0) == 0
    assert seen((0, 0), (1200, 30)).drained == "15 corrupt pages in 600 s"


def test_an_operator_who_says_so_brings_it_back():
    """And it is counted from there."""
    corruption = seen((0, 0), (5, 11))

    corruption.forgive()
    corruption.note(21, 1, 10.0)
    at_the_limit = corruption.drained
    corruption.note(22, 1, 15.0)

    assert (at_the_limit, corruption.drained) == (None, "11 corrupt pages in 600 s")


@pytest.mark.parametrize(("pages_max", "drains", "found"), [(10, False, 10_000), (0, True, 0)])
def test_it_can_be_switched_off_and_made_strict(pages_max, drains, found):
    """Off, it only counts; with none allowed, none is still well."""
    corruption = seen((0, 0), (5, found), plan=Plan(pages_max, 600.0, drains))

    assert (corruption.drained, corruption.lately(5.0)) == (None, found)
    assert seen((0, 0), (5, 1), plan=Plan(0)).drained == "1 corrupt pages in 600 s"


@given(st.lists(st.tuples(st.floats(0, 2000), st.integers(0, 20), st.integers(1, 2)), max_size=200))
def test_it_is_bounded_and_never_negative(looks):
    """Whatever servers say, there is at most a number for each slice, and no page is found twice."""
    corruption, now_s, rises, last = Corruption(PLAN), 0.0, 0, 0
    for after_s, total, engines in looks:
        now_s += after_s
        corruption.note(total, engines, now_s)
        rises, last = rises + (total - last if total >= last else total), total
        assert 0 <= corruption.lately(now_s) <= rises
        assert len(corruption._slices) <= SLICES + 1
