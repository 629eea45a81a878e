"""Which time limit holds, and which of them ends a request first."""

from hypothesis import given
from hypothesis import strategies as st

from guards.refusal import Ending
from guards.timeouts import UNSAID, Due, Times, first_due, tightest

LIMIT = st.none() | st.floats(0.1, 1e6)
TIMES = st.builds(Times, LIMIT, LIMIT)


def test_of_what_several_say_the_shortest_of_each_holds():
    """An org may bound sessions and a key turns; nobody says what nobody said."""
    assert tightest([Times(60, None), Times(30, 100), UNSAID]) == Times(30, 100)
    assert tightest([Times(60, None)]) == Times(60, None)
    assert tightest([]) == UNSAID


def test_whichever_is_over_first_ends_a_request():
    """A turn begins now, a session began when it was first seen; one of no session has only its turn's limit."""
    times = Times(turn_s=10, session_s=100)

    assert first_due(times, 50.0, 0.0) == Due(60.0, Ending.TIMEOUT, 10)
    assert first_due(times, 95.0, 0.0) == Due(100.0, Ending.SESSION, 100)
    assert first_due(times, 95.0, None) == Due(105.0, Ending.TIMEOUT, 10)
    assert first_due(Times(None, 100), 95.0, None) is None
    assert first_due(UNSAID, 95.0, 0.0) is None


@given(st.lists(TIMES, max_size=4), st.floats(0, 1e6), st.none() | st.floats(0, 1e6))
def test_no_limit_that_is_said_is_passed(said, now_s, since_s):
    """Whatever is said, by however many: the end is no later than each of it allows."""
    due = first_due(tightest(said), now_s, since_s)

    ends = [now_s + one.turn_s for one in said if one.turn_s is not None]
    ends += [since_s + one.session_s for one in said if one.session_s is not None and since_s is not None]
    assert (None if due is None else due.at_s) == min(ends, default=None)
