"""Evidence about a replica and the verdict it makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.health import STRIKES, Health, Probe

PROBES = st.lists(st.sampled_from(Probe), max_size=12)


@given(PROBES)
def test_one_good_probe_brings_a_replica_up(before):
    """Whatever was seen before, a good probe makes it up, with nothing held against it."""
    health = Health()
    for probe in before:
        health = health.after(probe)

    assert health.after(Probe.GOOD) == Health(up=True, why="answers")


@pytest.mark.parametrize("probe", [Probe.DEAD, Probe.REFUSED, Probe.WRONG])
def test_proof_takes_a_replica_down_at_once(probe):
    """An engine known to be dead, a refused connection or a wrong model needs no second probe."""
    health = Health().after(Probe.GOOD).after(probe)

    assert (health.up, health.why) == (False, probe.value)


def test_silence_counts_only_in_a_row():
    """A replica is down after so many unanswered probes in a row, not before."""
    health = Health().after(Probe.GOOD)
    verdicts = []
    for _ in range(STRIKES):
        health = health.after(Probe.SILENT)
        verdicts.append(health.up)

    assert verdicts == [True] * (STRIKES - 1) + [False]


@given(PROBES.filter(lambda probes: Probe.GOOD not in probes and probes))
def test_a_replica_that_never_answered_is_not_up(probes):
    """Before a first good probe, silence is no benefit of the doubt."""
    health = Health()
    for probe in probes:
        health = health.after(probe)

    assert (health.up, health.why) == (False, probes[-1].value)


@given(PROBES)
def test_only_proof_of_death_ends_streams(probes):
    """A replica is `gone` exactly when the last probe proved it; one that merely is silent may still compute."""
    health = Health()
    for probe in probes:
        health = health.after(probe)

    assert health.gone == (bool(probes) and probes[-1] in (Probe.DEAD, Probe.REFUSED))
