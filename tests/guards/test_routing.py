"""Which replica is next."""

from hypothesis import given
from hypothesis import strategies as st

from guards.routing import Candidate, pick

CANDIDATES = st.lists(
    st.builds(
        Candidate, st.sampled_from("abcdef"), st.booleans(), st.booleans(), st.integers(0, 3), st.booleans(),
        st.booleans(), st.sampled_from([0.125, 0.5, 1.0]),
    ),
    max_size=6, unique_by=lambda one: one.name,
)  # fmt: skip
AVOID = st.frozensets(st.sampled_from("abcdef"))


def up(name: str, load: int = 0, standby: bool = False) -> Candidate:
    return Candidate(name, True, standby, load)


def down(name: str, load: int = 0) -> Candidate:
    return Candidate(name, False, False, load)


def test_the_order_is_up_then_not_failed_then_active_then_load_then_name():
    """Each rule decides only between those that are equal by the rules before it."""
    assert pick([down("a"), up("b", 9)]) == "b"
    assert pick([up("a"), up("b", 9, standby=True)], frozenset("a")) == "b"
    assert pick([up("a", standby=True), up("b", 9)]) == "b"
    assert pick([up("a", 2), up("b", 1)]) == "b"
    assert pick([up("a", 1), up("b", 1)]) == "a"


def test_a_doubtful_server_comes_after_the_others_and_before_those_that_failed():
    """A server most of whose streams are silent gets a request only where the others are worse."""
    doubtful = Candidate("a", True, False, 0, doubtful=True)

    assert pick([doubtful, up("b", 9, standby=True)]) == "b"
    assert pick([doubtful, up("b")], frozenset("b")) == "a"
    assert pick([doubtful, down("b")]) == "a"
    assert pick([doubtful]) == "a"


def test_a_refused_server_comes_after_the_others_and_before_those_that_failed():
    """A server whose breaker is open, or that came up only just, gets a request where all others are worse."""
    refused = Candidate("a", True, False, 0, refused=True)

    assert pick([refused, up("b", 9, standby=True)]) == "b"
    assert pick([refused, Candidate("b", True, False, 9, doubtful=True)]) == "b"
    assert pick([refused, up("b")], frozenset("b")) == "a"
    assert pick([refused, down("b")]) == "a"
    assert pick([refused]) == "a"


def test_a_server_of_less_weight_gets_less_and_not_nothing():
    """With an eighth of the weight it is next when each other one has eight times its load."""
    light = Candidate("a", True, False, 0, weight=0.125)

    assert pick([light, up("b", 6)]) == "b"
    assert pick([light, up("b", 8)]) == "a"


def test_a_replica_held_for_down_is_tried_when_nothing_else_is_left():
    """The verdict may be stale; but who failed this very request and is down is not tried again."""
    assert pick([down("a", 3), down("b", 1)]) == "b"
    assert pick([down("a"), down("b")], frozenset("b")) == "a"
    assert pick([down("a")], frozenset("a")) is None
    assert pick([]) is None


def test_who_failed_and_is_up_comes_before_who_is_down():
    """A server that lost this request and answers its probes is a better bet than one that does not."""
    assert pick([down("a"), up("b")], frozenset("b")) == "b"


@given(CANDIDATES, AVOID)
def test_somebody_is_picked_whenever_somebody_could_answer(candidates, avoid):
    """None only when every replica is both down and failed; never one that is worse by any rule."""
    named = {one.name: one for one in candidates}

    picked = pick(candidates, avoid)

    assert (picked is None) == all(not one.up and one.name in avoid for one in candidates)
    if picked is not None:

        def rank(one: Candidate) -> tuple[object, ...]:
            burden = (one.load + 1) / one.weight
            return not one.up, one.name in avoid, one.refused, one.doubtful, one.standby, burden

        assert rank(named[picked]) == min(rank(one) for one in candidates if one.up or one.name not in avoid)
