"""How often something costly may be done."""

from hypothesis import given
from hypothesis import strategies as st

from guards.allowance import Allowance


def taken(allowance: Allowance, now: float, tries: int = 100) -> int:
    """How many of so many tries at this time are allowed."""
    return sum(allowance.take(now) for _ in range(tries))


def test_a_burst_and_then_what_flows_in():
    """So many at once, then so many per second, never more saved up than the burst."""
    allowance = Allowance(per_s=10.0, burst=4)

    assert taken(allowance, 100.0) == 4
    assert taken(allowance, 100.05) == 0
    assert taken(allowance, 100.25) == 2  # what flowed in while it refused is kept
    assert taken(allowance, 200.0) == 4


def test_nothing_flows_in_where_nothing_may():
    """With a rate of 0 the burst is all there ever is; with a burst of 0 there is nothing."""
    never, none = Allowance(per_s=0.0, burst=2), Allowance(per_s=10.0, burst=0)

    assert (taken(never, 1.0), taken(never, 1e9)) == (2, 0)
    assert (taken(none, 1.0), taken(none, 1e9)) == (0, 0)


def test_a_clock_that_goes_back_gives_nothing():
    """Time that is counted twice is not granted twice: at most the burst, and what flows in from there on."""
    allowance = Allowance(per_s=1.0, burst=3)
    taken(allowance, 100.0)

    assert taken(allowance, 50.0) == 0
    assert taken(allowance, 52.0) == 2


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 30)), max_size=30), st.floats(0.0, 20.0), st.integers(1, 50)
)
def test_never_more_than_the_burst_and_the_rate(steps, per_s, burst):
    """Over any stretch of time, what was allowed is bounded by the burst and the rate."""
    allowance, now, total = Allowance(per_s, burst), 1000.0, 0
    for wait_s, tries in steps:
        now += wait_s
        total += taken(allowance, now, tries)

    assert total <= burst + per_s * (now - 1000.0) + 1e-6
