"""How much a server may hold: less when it cannot keep up, more while that is all that keeps requests waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.concurrency import Aimd, TokenLimit

AIMD = Aimd(floor=1_000, ceiling=100_000, start=50_000)


def holding(tokens: int, aimd: Aimd = AIMD) -> TokenLimit:
    """A server's limit, with so many tokens in flight."""
    limit = TokenLimit(aimd)
    limit.tokens = tokens
    return limit


def test_requests_that_wait_at_the_server_for_two_seconds_shrink_it():
    """Not sooner: every prompt waits for a step or two."""
    limit = holding(40_000)
    for now_s in (10.0, 11.0, 11.9):
        limit.look(9, 1, 0, now_s)
        assert limit.limit == AIMD.start

    limit.look(9, 1, 0, 12.0)

    assert limit.limit == AIMD.shrink * 40_000 * 9 / 10


def test_waits_that_are_over_in_between_are_none():
    """Two seconds without a moment at which nobody waited."""
    limit = holding(40_000)
    for now_s, waiting in ((10.0, 1), (11.0, 0), (12.0, 1), (13.0, 1)):
        limit.look(9, waiting, 0, now_s)

    assert limit.limit == AIMD.start


def test_a_preemption_shrinks_it_at_once():
    """By a tenth of what is in flight, not of a limit that nothing reached."""
    limit = holding(30_000)
    limit.look(10, 0, 7, 10.0)  # before we looked: not ours

    limit.look(10, 0, 8, 11.0)

    assert limit.limit == AIMD.shrink * 30_000


def test_who_has_next_to_nothing_there_is_not_at_fault():
    """Another gateway's requests are thrown out: this one's limit stays, for when it has some."""
    limit = holding(AIMD.floor)
    for preemptions in (7, 8, 9):
        limit.look(10, 5, preemptions, 10.0 * preemptions)

    assert limit.limit == AIMD.start


def test_a_server_that_was_started_anew_has_preempted_nobody():
    """Its count begins at 0, which is less than before."""
    limit = holding(30_000)
    for preemptions in (7, 0, 0):
        limit.look(10, 0, preemptions, 10.0 + preemptions)

    assert limit.limit == AIMD.start


def test_it_shrinks_once_until_that_can_have_helped():
    """What runs there goes on for a while; each look would shrink it again."""
    limit = holding(30_000)
    for number in range(12):
        limit.look(10, 0, number, 10.0 + 0.1 * number)

    assert limit.limit == AIMD.shrink * 30_000


def test_it_grows_only_while_it_is_in_the_way():
    """A limit that nobody reaches is not known to be good, and stays."""
    limit = holding(30_000)
    limit.look(10, 0, 0, 10.0)
    limit.look(10, 0, 0, 11.0)
    idle = limit.limit
    fits = limit.fits(30_000)
    limit.look(10, 0, 0, 12.0)

    assert (idle, fits) == (AIMD.start, False)
    assert limit.limit == AIMD.start + AIMD.growth_per_s


def test_a_long_time_without_a_look_is_no_reason_to_grow_at_once():
    """Growth is bounded by what could be learnt."""
    limit = holding(50_000)
    limit.look(10, 0, 0, 10.0)
    limit.fits(1)
    limit.look(10, 0, 0, 10_000.0)

    assert limit.limit <= AIMD.start + 5.0 * AIMD.growth_per_s


def test_a_request_that_is_larger_than_the_limit_fits_alone():
    """Else it would never run."""
    assert holding(0).fits(10 * AIMD.ceiling)
    assert not holding(1).fits(10 * AIMD.ceiling)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 200_000), st.floats(0.0, 10.0))))
def test_it_stays_between_floor_and_ceiling(looks):
    """Whatever a server says."""
    limit, now_s = TokenLimit(AIMD), 0.0
    for running, waiting, tokens, after_s in looks:
        now_s += after_s
        limit.tokens = tokens
        limit.fits(1_000)
        limit.look(running, waiting, waiting * running, now_s)
        assert AIMD.floor <= limit.limit <= AIMD.ceiling


@pytest.mark.parametrize("wrong", [{"floor": 0}, {"start": 1}, {"ceiling": 5_000}, {"shrink": 1.0}, {"waits_s": -1.0}])
def test_numbers_that_make_no_sense_are_said_to(wrong):
    """By name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Aimd(**wrong)
