"""A rate is never exceeded in any span of time, whatever is given back, and is reached when it is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.rate import SECOND_NS, Rate

RATES = st.builds(Rate, st.integers(1, 10_000), st.sampled_from([1, 60, 3600]), st.integers(min_value=1, max_value=500))
ASKS = st.lists(st.tuples(st.integers(0, 5 * SECOND_NS), st.integers(0, 500)), max_size=40)


def admitted(rate, asks):
    """What is let through, each with its time."""
    earned_ns = now_ns = 0
    found = []
    for after_ns, cost in asks:
        now_ns += after_ns
        if cost <= rate.burst and not rate.wait_ns(earned_ns, now_ns, cost):
            earned_ns, _ = rate.take(earned_ns, now_ns, cost)
            found.append((now_ns, cost))
    return found


@given(RATES, ASKS)
def test_no_span_of_time_sees_more_than_the_burst_and_what_it_earned(rate, asks):
    """For every pair of moments, with no boundary between windows to profit from."""
    found = admitted(rate, asks)
    for first, (begin_ns, _) in enumerate(found):
        passed = 0
        for end_ns, cost in found[first:]:
            passed += cost
            assert passed * rate.interval_ns <= rate.burst * rate.interval_ns + end_ns - begin_ns


@given(RATES)
def test_a_rate_that_is_no_whole_number_of_nanoseconds_is_never_faster(rate):
    """Its interval is rounded up, and by less than a nanosecond."""
    assert 0 <= rate.interval_ns * rate.units - rate.period_s * SECOND_NS < rate.units


@given(RATES, ASKS, st.integers(1, 500))
def test_a_wait_is_long_enough_and_no_longer(rate, asks, cost):
    """After it the request fits, and a nanosecond before it did not."""
    cost = min(cost, rate.burst)
    earned_ns = now_ns = 0
    for after_ns, before in asks:
        now_ns += after_ns
        earned_ns, _ = rate.take(earned_ns, now_ns, min(before, rate.burst))

    wait_ns = rate.wait_ns(earned_ns, now_ns, cost)

    assert rate.wait_ns(earned_ns, now_ns + wait_ns, cost) == 0
    assert not wait_ns or rate.wait_ns(earned_ns, now_ns + wait_ns - 1, cost) == 1


@given(RATES, st.lists(st.tuples(st.integers(0, 5 * SECOND_NS), st.integers(0, 500), st.booleans()), max_size=30))
def test_giving_back_is_at_most_as_if_it_had_never_been_taken(rate, asks):
    """Also when it comes late: what was earned again meanwhile is nobody's twice."""
    earned_ns = without_ns = now_ns = 0
    kept = []
    for after_ns, cost, used in asks:
        now_ns += after_ns
        cost = min(cost, rate.burst)
        earned_ns, taken = rate.take(earned_ns, now_ns, cost)
        if used:
            without_ns, _ = rate.take(without_ns, now_ns, cost)
        else:
            kept.append(taken)
    for taken in kept:
        now_ns += SECOND_NS // 10
        earned_ns = rate.give_back(earned_ns, now_ns, taken, taken.cost)
        assert max(earned_ns, now_ns) >= max(without_ns, now_ns)


def test_what_is_given_back_at_once_can_be_taken_again():
    """A request that used nothing has cost nothing."""
    rate = Rate(units=60, period_s=60, burst=10)
    earned_ns, taken = rate.take(0, SECOND_NS, 10)
    full = rate.left(earned_ns, SECOND_NS)

    earned_ns = rate.give_back(earned_ns, SECOND_NS, taken, 4)

    assert (full, rate.left(earned_ns, SECOND_NS)) == (0, 4)
    assert rate.wait_ns(earned_ns, SECOND_NS, 5) == SECOND_NS
    assert rate.full_in_ns(earned_ns, SECOND_NS) == 6 * SECOND_NS


def test_more_than_the_burst_is_never_possible():
    """That is the request's fault, not the moment's: no wait would help."""
    with pytest.raises(ValueError, match="11 at once is more than the burst of 10"):
        Rate(units=60, period_s=60, burst=10).wait_ns(0, 0, 11)


@given(RATES, st.integers(0, 10 * SECOND_NS), st.integers(0, 20 * SECOND_NS))
def test_what_is_left_can_be_taken_and_one_more_cannot(rate, now_ns, ahead_ns):
    """The number that clients are told is the number that is true."""
    earned_ns = min(now_ns + ahead_ns, now_ns + rate.burst * rate.interval_ns)
    left = rate.left(earned_ns, now_ns)

    assert rate.wait_ns(earned_ns, now_ns, left) == 0
    assert left == rate.burst or rate.wait_ns(earned_ns, now_ns, left + 1) > 0
