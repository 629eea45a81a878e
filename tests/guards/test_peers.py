"""A server beside the others of its model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.peers import ALIKE, BETTER, RULES, WEIGHT_LEAST, Vitals, compared

USUAL = Vitals(gap_s=0.02, waiting=1.0, kv_used=0.5, preempted_per_s=0.0)
VITALS = st.builds(
    Vitals,
    *(st.none() | st.floats(0, 1e6) for _ in range(2)),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1e6),
)


@pytest.mark.parametrize(
    ("vital", "value", "words"),
    [
        ("gap_s", 0.2, "its gaps between tokens are 0.200 s, the others' 0.020 s"),
        ("waiting", 40.0, "40 requests wait there, at the others 1"),
        ("kv_used", 0.98, "its KV cache is 98% full, the others' 50%"),
        ("preempted_per_s", 3.0, "it puts back 3.0 requests a second, the others 0.0"),
    ],
)
def test_a_server_that_is_much_worse_is_noted_and_gets_less(vital, value, words):
    """In one vital: the words name it and both numbers, and the weight falls."""
    found = compared(USUAL._replace(**{vital: value}), [USUAL, USUAL])

    assert (found.vitals, found.words) == ({vital}, [words])
    assert WEIGHT_LEAST <= found.weight < 1


def test_ten_times_slower_is_a_tenth_of_the_weight_and_no_less_than_the_least():
    """The weight is the ratio to what is usual, bounded below so that a recovery is seen."""
    usual = [USUAL._replace(gap_s=0.1)] * 3

    assert compared(Vitals(gap_s=0.5), usual).weight == pytest.approx(0.2)
    assert compared(Vitals(gap_s=50.0), usual).weight == WEIGHT_LEAST


def test_the_median_of_the_others_is_the_measure():
    """One bad neighbour does not make a bad server look good; a server is not compared with itself."""
    slow, fast = Vitals(gap_s=0.4), Vitals(gap_s=0.02)

    assert compared(slow, [fast, fast, slow]).vitals == {"gap_s"}
    assert compared(slow, [slow, slow, fast]) == ALIKE
    assert compared(slow, []) == ALIKE


@pytest.mark.parametrize("rule", RULES, ids=[rule.vital for rule in RULES])
def test_what_nobody_minds_is_not_noted(rule):
    """Below the least that matters, any ratio to neighbours that have nothing to do is fine."""
    others = [Vitals(*[0.0] * len(RULES))]

    assert compared(Vitals(**{rule.vital: rule.least}), others) == ALIKE
    assert compared(Vitals(**{rule.vital: rule.least * 1.01}), others).vitals == {rule.vital}


def test_what_was_noted_stays_until_it_is_clearly_over():
    """Just below the threshold nothing changes, so that facts and weights do not flicker; well below, it is over."""
    (rule, *_) = RULES
    limit = max(rule.least, rule.factor * USUAL.gap_s)
    before = compared(Vitals(gap_s=2 * limit), [USUAL])

    still = compared(Vitals(gap_s=limit * (BETTER + 0.01)), [USUAL], before)
    over = compared(Vitals(gap_s=limit * BETTER), [USUAL], before)

    assert (still.vitals, over) == ({"gap_s"}, ALIKE)


def test_what_is_not_known_keeps_what_was_found():
    """A server that is sent nothing shows nothing: that does not make it fast again."""
    before = compared(Vitals(gap_s=0.5), [USUAL])

    assert compared(Vitals(), [USUAL], before) == before
    assert compared(Vitals(gap_s=0.5), [Vitals()], before) == before


@given(VITALS, st.lists(VITALS, max_size=4), VITALS)
def test_the_weight_is_always_between_its_bounds(own, others, earlier):
    """And 1 where nothing is worse."""
    found = compared(own, others, compared(earlier, others))

    assert WEIGHT_LEAST <= found.weight <= 1.0
    assert found.worse or found.weight == 1.0
