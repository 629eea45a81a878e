"""Whose fault a failure is: the server's, or the request's."""

from hypothesis import given
from hypothesis import strategies as st

from guards.blame import Blame


def failed(*servers: str) -> Blame[str]:
    blame: Blame[str] = Blame()
    for number, server in enumerate(servers):
        blame.failed(server, f"{server}{number}")
    return blame


def test_a_failure_that_another_server_does_not_repeat_counts():
    """Also when several failed it before one answered: it was none of the request's."""
    blame = failed("a", "b")

    assert blame.answered() == ["a0", "b1"]
    assert blame.answered() == []
    assert blame.over(unsure=False) == ([], [])


def test_a_failure_that_two_servers_repeat_is_the_requests():
    """It counts against none of them."""
    assert failed("a", "b").over(unsure=False) == ([], ["a0", "b1"])


def test_a_failure_that_nobody_else_could_repeat_counts_unless_somebody_left():
    """One server twice is no second opinion; and who leaves chooses the moment, so that shows nothing."""
    assert failed("a", "a").over(unsure=False) == (["a0", "a1"], [])
    assert failed("a").over(unsure=True) == ([], ["a0"])


@given(st.lists(st.one_of(st.sampled_from("abc"), st.none()), max_size=12), st.booleans())
def test_each_call_is_judged_once(story, unsure):
    """Whatever fails and is answered in between, every failed call is given back exactly once."""
    blame: Blame[int] = Blame()
    given_back = []
    for number, server in enumerate(story):
        if server is None:
            given_back += blame.answered()
        else:
            blame.failed(server, number)
    counted, neutral = blame.over(unsure=unsure)

    assert sorted(given_back + counted + neutral) == [n for n, server in enumerate(story) if server is not None]
    assert not (counted and neutral)
