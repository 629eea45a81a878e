"""A rate is never exceeded in any span of time, whatever is given back, and is reached when it is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.rate import SECOND_NS, Rate, Throttle, duration

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


@given(RATES, st.integers(1, 500))
def test_what_is_owed_is_waited_for(rate, cost):
    """One interval for each unit, beyond what a rest would have left."""
    earned_ns, _ = rate.take(0, 0, rate.burst)

    owed_ns = rate.owe(earned_ns, 0, cost)

    assert rate.left(owed_ns, 0) == 0
    assert rate.wait_ns(owed_ns, 0, 1) == (cost + 1) * rate.interval_ns


@pytest.mark.parametrize(
    ("nanoseconds", "said"),
    [(0, "0ms"), (1, "1ms"), (20_000_000, "20ms"), (1_500_000_000, "1.5s"), (59_999_000_000, "59.999s"),
     (60_000_000_000, "1m0s"), (360_000_000_001, "6m1s")],
)  # fmt: skip
def test_a_time_is_said_as_openai_says_it(nanoseconds, said):
    """Never shorter than it is."""
    assert duration(nanoseconds) == said


@given(
    st.builds(Rate, st.integers(1, 500), st.sampled_from([1, 60]), st.integers(1, 100)),
    st.lists(st.tuples(st.integers(0, 3 * SECOND_NS), st.integers(0, 50)), max_size=40),
)
def test_a_throttled_stream_never_comes_faster_than_its_rate(rate, looks):
    """Whatever it takes of what it may, and whenever it asks: at most the burst and what was earned, in any span."""
    now_ns, delivered, had = 0, 0, []
    throttle = Throttle(rate, lambda: now_ns)
    for pause_ns, appetite in looks:
        now_ns += pause_ns
        most = throttle.most(delivered)
        assert most >= delivered
        delivered = min(most, delivered + appetite)
        had.append((now_ns, delivered))

    for number, (since_ns, _) in enumerate(had):
        before = had[number - 1][1] if number else 0
        for until_ns, after in had[number:]:
            assert after - before <= throttle.rate.burst + (until_ns - since_ns) / rate.interval_ns + 1


def test_a_throttled_stream_that_is_hungry_has_all_that_was_promised():
    """Ten seconds at fifty a second, asked for a few times a second: the burst and five hundred more."""
    now_ns, delivered = 0, 0
    throttle = Throttle(Rate(50, 1, 20), lambda: now_ns)
    for _ in range(41):
        delivered = throttle.most(delivered)
        now_ns += int(throttle.step_s * SECOND_NS)

    assert 500 <= delivered <= 520


@given(st.integers(1, 100), st.integers(1, 20), st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_chunks_larger_than_the_burst_come_through_at_the_rate(units, burst, chunks):
    """Each is saved for until it fits; none comes before it was earned, and none waits for ever."""
    now_ns, delivered = 0, 0
    throttle = Throttle(Rate(units, 1, burst), lambda: now_ns)
    for chunk in chunks:
        most, hungry = throttle.most(delivered), False
        while most < delivered + chunk:
            now_ns += int(throttle.step_s * SECOND_NS)
            most, hungry = throttle.most(delivered, hungry=hungry), True
            assert now_ns < 10_000 * SECOND_NS
        delivered += chunk
        assert delivered <= throttle.rate.burst + max(chunks) + now_ns / (SECOND_NS // units) + 1
    assert now_ns <= (1.2 * sum(chunks) / units + (len(chunks) + 1) * 2 * throttle.step_s + 1) * SECOND_NS


@given(st.integers(1, 10_000), st.sampled_from([1, 60, 3600]), st.integers(1, 1_000), st.integers(1, 16))
def test_parts_of_a_rate_never_give_more_than_all_of_it(units, period_s, burst, count):
    """Neither at once nor in the long run."""
    whole = Rate(units, period_s, max(burst, count))

    part = whole.part(count)

    assert part.burst >= 1
    assert part.burst * count <= whole.burst
    assert part.interval_ns >= whole.interval_ns * count - count
    assert part.units * count * whole.period_s <= whole.units * part.period_s
