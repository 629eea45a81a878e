"""How much of a shared budget one gateway leases, and what it gives back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.leasing import REFRESH_S, Use, cushion, kept, refill

COUNTS = st.integers(0, 10_000)


def test_use_is_known_after_a_few_seconds_and_forgotten_after_some_more():
    """A steady hundred a second is seen as that, whatever the times between readings; rest fades."""
    use, now_s = Use(0, 0.0), 0.0
    for passed_s in [0.1, 1.0, 0.3, 2.0] * 4:
        now_s += passed_s
        use = use.seen(round(100 * now_s), now_s)
    after = use.seen(use.used, now_s + 20)

    assert use.per_s == pytest.approx(100, rel=0.05)
    assert after.per_s < 0.01
    assert use.seen(0, now_s + 1).per_s < use.per_s  # what was given back is no use


def test_a_lease_lasts_for_two_renewals_and_covers_a_request_at_least():
    """As long as there is plenty."""
    assert cushion(100.0, 50, 1_000_000) == 100 * REFRESH_S
    assert cushion(0.0, 50, 1_000_000) == 50


@given(st.floats(0, 1e6), COUNTS, st.integers(-1_000, 10_000))
def test_a_lease_is_a_small_part_of_what_is_left(per_s, share, pool):
    """So that near the end, nearly nothing lies idle."""
    assert 0 <= cushion(per_s, share, pool) <= max(0, pool) / 8


@given(COUNTS, COUNTS, COUNTS, st.integers(-2_000, 2_000), st.booleans())
def test_no_more_is_given_back_than_is_free(free, cushioned, asked, unleased, wanted):
    """What others lack goes at once, what is leased beyond the budget too, and the rest slowly."""
    left = kept(free, cushioned, asked, unleased, wanted=wanted)

    assert 0 <= left <= free
    if unleased < 0:
        assert left == max(0, free + unleased)
    elif wanted:
        assert left == min(free, asked)
    elif free <= max(cushioned, asked):
        assert left == free


def test_what_lies_idle_goes_back_slowly():
    """A fourth of what is too much, each time."""
    assert kept(1_000, 100, 0, 50, wanted=False) == 800
    assert kept(200, 100, 0, 50, wanted=False) == 200


@given(COUNTS, COUNTS)
def test_a_lease_is_renewed_before_it_is_used_up(free, cushioned):
    """When half of it is."""
    more = refill(free, cushioned)

    assert more == (cushioned - free if free <= cushioned // 2 else 0)
