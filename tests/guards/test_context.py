"""Whether a prompt fits, and which turns may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.context import excess, near, room, to_drop, turns

ROLES = st.lists(st.sampled_from(["system", "developer", "user", "assistant", "tool", None]), max_size=20)


def test_nine_tenths_of_the_limit_are_near():
    """From there on, and beyond the limit."""
    assert [near(tokens, 1000) for tokens in (0, 899, 900, 1000, 5000)] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "wanted"),
    [(999, None, 0), (1000, None, 100), (700, 300, 0), (701, 300, 1), (990, 50, 90), (400, 5000, 0), (600, 5000, 100)],
)
def test_what_does_not_fit_has_to_go_and_some_more(tokens, max_tokens, wanted):
    """The answer needs room, half of the limit at most; who drops anything leaves a tenth free."""
    assert excess(tokens, max_tokens, 1000) == wanted


def test_a_turn_begins_where_a_user_speaks_after_somebody_else():
    """Several messages of a user are one turn; what came before the first is one; system messages are in none."""
    roles = ["system", "assistant", "user", "user", "assistant", "tool", "assistant", "developer", "user", "assistant"]

    assert turns(roles) == [[1], [2, 3, 4, 5, 6], [8, 9]]
    assert turns([]) == turns(["system"]) == []


@given(ROLES)
def test_turns_hold_all_but_the_system_and_split_no_call_from_its_result(roles):
    """Every message is in one turn, in order, and a tool's result never begins one unless nothing precedes it."""
    found = turns(roles)

    assert [place for turn in found for place in turn] == [
        place for place, role in enumerate(roles) if role not in ("system", "developer")
    ]
    assert all(roles[turn[0]] == "user" for turn in found[1:])


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(1, 100),
    st.integers(1, 100),
)  # fmt: skip
def test_no_more_turns_are_dropped_than_are_needed(droppable, tokens, too_many):
    """One at least, and with one fewer not enough would go."""
    sizes = [5, 1, 9, 2]
    each = tokens / sum(sizes)

    def gone(number: int) -> float:
        return sum(each * sizes[place] for turn in droppable[:number] for place in turn)

    number = to_drop(droppable, sizes, tokens, too_many)

    assert 1 <= number <= len(droppable)
    assert gone(number) >= too_many - 1e-6 or number == len(droppable)
    assert number == 1 or gone(number - 1) < too_many + 1e-6


@given(st.integers(1, 1 << 20), st.none() | st.integers(1, 1 << 31))
def test_an_answer_never_takes_more_than_half(limit, max_tokens):
    """So that a prompt may have the other half, whatever max_tokens says; a token is needed always."""
    assert 1 <= room(max_tokens, limit) <= max(1, limit // 2)
