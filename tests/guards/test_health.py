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


@given(PROBES.filter(lambda probes: Probe.GOOD not in probes))
def test_an_ejected_replica_is_gone_and_stays_down_until_it_is_good(before):
    """A hang is a verdict like death: its streams need not wait, and only a good probe lifts it."""
    hung = Health.ejected(["a canary is not answered", "/metrics does not answer"])
    health = hung
    for probe in before:
        health = health.after(probe)

    assert (hung.up, hung.gone, hung.hung) == (False, True, True)
    assert hung.why == "hangs: a canary is not answered, /metrics does not answer"
    assert health.up is False
    assert health.after(Probe.GOOD) == Health(up=True, why="answers")


@pytest.mark.parametrize("probe", [Probe.SILENT, Probe.ODD, Probe.COLD, Probe.KEY])
def test_an_ejected_replica_gets_no_benefit_of_the_doubt(probe):
    """What a server that is up may miss a few times does not bring one back that is down."""
    health = Health.ejected(["a test"]).after(probe)

    assert (health.up, health.hung, health.why) == (False, False, probe.value)


def test_cold_is_a_verdict_at_once():
    """A server whose process answers while it computes nothing gets no request, and no strikes."""
    assert Health(up=False).after(Probe.COLD).up is False
    assert Health(up=True).after(Probe.COLD).up is False
