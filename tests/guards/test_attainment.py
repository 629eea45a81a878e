"""How often promises are kept, by size."""

import json
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.attainment import BUCKETS, Attainment, Cell, Kept, Verdict, cell, wilson

NOTES = st.lists(
    st.tuples(
        st.sampled_from(["chat", "long"]),
        st.builds(Cell, st.integers(0, BUCKETS - 1), st.integers(0, BUCKETS - 1)),
        st.sampled_from(Verdict),
    ),
    max_size=60,
)


def table(notes, **said: int) -> Attainment:
    """A table that has seen these."""
    one = Attainment(**said)
    for name, size, verdict in notes:
        one.note(name, size, verdict)
    return one


def times(size: Cell, kept: int, broken: int, name: str = "chat") -> list[tuple[str, Cell, Verdict]]:
    return [(name, size, Verdict.KEPT)] * kept + [(name, size, Verdict.LATE_FIRST)] * broken


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(-1, 0), (0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (2**20, BUCKETS - 1), (10**30, BUCKETS - 1)]
)
def test_sizes_are_powers_of_two(tokens, bucket):
    """And so many of them, whatever a client sends."""
    assert cell(tokens, 3) == Cell(bucket, 2)


def test_refusals_and_losses_are_misses():
    """All that is not kept is broken: nobody looks better for refusing."""
    one = table([("chat", Cell(1, 1), verdict) for verdict in Verdict])

    assert one.kept("chat") == Kept(1, len(Verdict))
    assert one.verdicts("chat") == dict.fromkeys(Verdict, 1)
    assert one.kept("nobody") == Kept(0, 0)


def test_the_worst_is_that_of_which_it_is_sure():
    """Half of a hundred is worse than one of one: that may have been chance."""
    sure, chance, good = Cell(8, 4), Cell(9, 4), Cell(10, 4)
    one = table([*times(good, 99, 1), *times(chance, 0, 1), *times(sure, 50, 50)])

    worst = one.worst()

    assert worst is not None
    assert (worst.size, worst.kept) == (sure, Kept(50, 100))


def test_the_worst_is_asked_for_of_one_class():
    """Or of all; of one that nothing was promised to there is none."""
    one = table([*times(Cell(1, 1), 1, 50), *times(Cell(2, 2), 50, 1, "long")])

    assert [row and row.service_class for row in (one.worst(), one.worst("long"), one.worst("x"))] == [
        "chat", "long", None,
    ]  # fmt: skip


def test_the_table_is_bounded_and_loses_nothing():
    """What does not fit is counted together, and names no class; what is there still counts."""
    one = table([("chat", Cell(at % BUCKETS, at // BUCKETS), Verdict.KEPT) for at in range(100)], cells_max=10)
    one.note("chat", Cell(0, 0), Verdict.LOST)

    assert len(one.rows()) == 11
    assert sum(row.kept.made for row in one.rows()) == 101
    assert one.kept("chat") == Kept(10, 11)
    assert one.worst() is not None


@pytest.mark.slow
@given(NOTES, NOTES)
def test_two_tables_are_one(some, others):
    """Merged, or told and taken in elsewhere, they are what one would have been that had seen all."""
    whole = table([*some, *others])
    merged = table(some)
    merged.merge(table(others))
    told = table(some)
    told.take(json.loads(json.dumps(table(others).told())))

    assert merged == told == whole
    assert whole.told() == merged.told()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"class": None}, "class is a name, not None"),
        ({"input": BUCKETS}, f"below {BUCKETS}"),
        ({"output": -1}, "output is a whole number, not -1"),
        ({"input": True}, "input is a whole number, not True"),
        ({"kept": 1.5}, "kept is a whole number, not 1.5"),
        ({"refused": "many"}, "refused is a whole number, not 'many'"),
    ],
)
def test_what_is_no_table_is_refused_whole(wrong, what):
    """Nothing of it is added, and the message names the field."""
    good = {"class": "chat", "input": 1, "output": 1, "kept": 1}
    one = Attainment()

    with pytest.raises(ValueError, match=what):
        one.take([good, good | wrong])

    assert one.rows() == []


def test_wilson_is_what_the_literature_says():
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    intervals = [wilson(*said) for said in ((81, 263), (15, 148), (0, 20), (1, 29))]

    assert [(round(low, 4), round(high, 4)) for low, high in intervals] == [
        (0.2553, 0.3662), (0.0624, 0.1605), (0.0, 0.1611), (0.0061, 0.1718),
    ]  # fmt: skip
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_wilson_holds_the_truth_as_often_as_it_says(share):
    """Of fifty that were seen, it is within for about 95 % of what may be seen."""
    chances = [comb(50, seen) * share**seen * (1 - share) ** (50 - seen) for seen in range(51)]

    within = sum(p for seen, p in enumerate(chances) if wilson(seen, 50)[0] <= share <= wilson(seen, 50)[1])

    assert within == pytest.approx(0.95, abs=0.025)
