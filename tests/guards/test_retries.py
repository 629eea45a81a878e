"""How many requests may be asked again because a server answered with an error."""

from hypothesis import given
from hypothesis import strategies as st

from guards.retries import WINDOW_S, Retries


def taken(retries: Retries, now_s: float, tries: int = 1_000) -> int:
    """How many of so many tries at this time are allowed."""
    return sum(retries.take(now_s) for _ in range(tries))


def asked(retries: Retries, now_s: float, requests: int) -> Retries:
    """The same, after so many requests came."""
    for _ in range(requests):
        retries.request(now_s)
    return retries


def test_a_fifth_of_what_came_may_be_asked_again():
    """Of the requests that are remembered, once."""
    retries = asked(Retries(share=0.2, per_s=0.0), 100.0, 50)

    assert taken(retries, 104.0) == 10
    assert taken(retries, 109.0) == 0


def test_a_quiet_fleet_has_a_few_of_its_own():
    """So many a second, all at once where none were needed before."""
    retries = Retries(share=0.0, per_s=3.0)

    assert taken(retries, 100.0) == 3 * WINDOW_S
    assert taken(retries, 100.0 + WINDOW_S - 1) == 0
    assert taken(retries, 100.0 + WINDOW_S) == 3 * WINDOW_S


def test_what_came_too_long_ago_allows_nothing():
    """Neither a request at the end of the window, nor one of which nothing was asked since."""
    retries = asked(Retries(share=1.0, per_s=0.0), 100.9, 5)

    assert taken(retries, 100.0 + WINDOW_S) == 0
    assert taken(asked(retries, 1e6, 2), 1e6) == 2


def test_where_none_may_be_none_is():
    """With a share of nothing and no more beside it."""
    assert taken(asked(Retries(0.0, 0.0), 5.0, 100), 5.0) == 0


def test_a_clock_that_goes_back_gives_nothing():
    """Time that is counted twice is not granted twice."""
    retries = asked(Retries(share=0.5, per_s=0.0), 100.0, 10)
    first = taken(retries, 100.0)

    assert (first, taken(retries, 50.0)) == (5, 0)


@given(
    st.lists(st.tuples(st.floats(0.0, 15.0), st.integers(0, 20), st.integers(0, 20)), max_size=40),
    st.floats(0.0, 1.0),
    st.floats(0.0, 5.0),
)
def test_never_more_than_the_share_of_all_that_came(steps, share, per_s):
    """Over any time each request allows its share once, and each window what is beside that."""
    retries, now_s, requests, total = Retries(share, per_s), 1000.0, 0, 0
    for wait_s, came, tries in steps:
        now_s += wait_s
        requests += came
        total += taken(asked(retries, now_s, came), now_s, tries)

    windows = (now_s - 1000.0) / WINDOW_S + 2
    assert total <= share * requests + per_s * WINDOW_S * windows + 1e-6
