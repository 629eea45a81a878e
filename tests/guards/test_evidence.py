"""Evidence about a silent server and the verdict it makes."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.evidence import SEVERAL, Evidence

SIGNALS = {
    "streams": {"streams": 3, "silent": 2},
    "canary": {"canary": False},
    "metrics": {"metrics": False},
    "counters": {"computed": False},
}
LIFE = {"tokens": {"tokens": True}, "canary": {"canary": True}, "counters": {"computed": True}}
ANYTHING = st.builds(
    Evidence,
    streams=st.integers(0, 5),
    silent=st.integers(0, 5),
    tokens=st.booleans(),
    canary=st.sampled_from([None, True, False]),
    metrics=st.booleans(),
    computed=st.sampled_from([None, True, False]),
)


def evidence(*signals: str, **more: object) -> Evidence:
    """Evidence with these signals, and nothing else against it."""
    seen = Evidence()
    for name in signals:
        seen = replace(seen, **SIGNALS[name])
    return replace(seen, **more)


def test_nothing_seen_is_nothing_wrong():
    """Without any signal there is neither life nor a hang."""
    assert (Evidence().alive, Evidence().signals, Evidence().hung) == (False, [], False)


@pytest.mark.parametrize("signal", SIGNALS)
def test_one_signal_is_never_a_hang(signal):
    """Each has innocent causes: a long prefill, a full queue, a busy API process, an idle engine."""
    assert len(evidence(signal).signals) == 1
    assert not evidence(signal).hung


PAIRS = [pair for pair in combinations(SIGNALS, 2) if pair != ("metrics", "counters")]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_signals_are_a_hang(pair):
    """Any two that are independent of each other are a verdict."""
    assert evidence(*pair).hung


def test_metrics_that_do_not_answer_have_no_counters():
    """/metrics is one witness: silent, it cannot also tell that its counters stand still."""
    assert evidence("metrics", "counters").signals == ["/metrics does not answer"]
    assert not evidence("metrics", "counters").hung


@pytest.mark.parametrize("life", LIFE)
def test_any_sign_of_life_clears_it(life):
    """A server that was seen computing does not hang, whatever else is seen of it."""
    assert not evidence(*SIGNALS, **LIFE[life]).hung


@pytest.mark.parametrize(
    ("streams", "silent", "several"),
    [(1, 1, False), (2, 1, False), (2, 2, True), (4, 2, True), (5, 2, False), (100, 49, False), (100, 50, True)],
)
def test_several_streams_stall_together_when_they_are_half_of_all(streams, silent, several):
    """One stream alone proves nothing, nor do a few among many that go on."""
    assert bool(Evidence(streams=streams, silent=silent).signals) is several


@given(ANYTHING)
def test_a_hang_is_two_signals_and_no_life(seen):
    """Whatever was seen: no verdict without two signals, none against any sign of life."""
    against = [
        seen.silent >= SEVERAL and 2 * seen.silent >= seen.streams,
        seen.canary is False,
        not seen.metrics or seen.computed is False,
    ]
    life = seen.tokens or seen.canary is True or seen.computed is True

    assert seen.hung == (not life and sum(against) >= 2)


def test_no_verdict_while_something_may_yet_be_seen():
    """However many signals: where it is not known how far the counters were before, one looks again."""
    every = evidence(*SIGNALS)

    assert every.hung
    assert not replace(every, whole=False).hung
