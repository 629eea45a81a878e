"""The score: 0 to 100, of shares of trials that held, in which no zero can hide. Pure.

A probe's share is of its trials. A scenario's is that of its worst probe, since a stream that is equal does not make up
for one that is charged twice. The whole is

    100 × √(W × G)      W: the worst scenario's share, G: the weighted geometric mean of all

so that it is 0 where any scenario is 0, whatever its weight; where all have the same share, it is that; and one
scenario at a half among nine whole ones costs more than a quarter. What was not tried is in neither, and is told beside
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, log, sqrt
from typing import Any

from loadtests.gameday.scenario import Probe

Z = 1.959964  # of 95 %, on both sides


class Verdict(StrEnum):
    """What became of a scenario. Only HELD is a pass."""

    HELD = "held"  # all trials of all probes
    BROKEN = "broken"  # some did not hold, or it was not over in its time: counted
    NO_STEADY_STATE = "no steady state"  # it was not well before the fault, so nothing was injected: not counted
    NOT_TRIED = "not tried"  # it cannot be tried here: not counted
    FAILED = "failed"  # the scenario itself could not go on, by an error of its own: not counted


COUNTED = (Verdict.HELD, Verdict.BROKEN)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of 0 to 1, and between which bounds it is with a probability of 95 %."""

    share: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON, out of a hundred."""
        return {"score": round(self.share * 100, 1), "low": round(self.low * 100, 1), "high": round(self.high * 100, 1)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one scenario. why: of a verdict without probes, in words. took_s: all of it."""

    name: str
    title: str
    hypothesis: str
    weight: int
    weight_why: str
    verdict: Verdict
    probes: tuple[Probe, ...] = ()
    why: str = ""
    took_s: float = 0.0
    evidence: tuple[str, ...] = ()

    @property
    def share(self) -> Share | None:
        """That of its worst probe; None where it does not count."""
        if self.verdict not in COUNTED:
            return None
        if not self.probes:
            return Share(0.0, 0.0, 0.0)
        return min(map(wilson, self.probes), key=lambda one: (one.share, one.low))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        share = self.share
        return {
            "name": self.name, "title": self.title, "hypothesis": self.hypothesis, "verdict": str(self.verdict),
            "why": self.why, "weight": self.weight, "weight_why": self.weight_why, "took_s": round(self.took_s, 1),
            "score": share and share.as_dict(), "probes": [one.as_dict() for one in self.probes],
            "evidence": list(self.evidence),
        }  # fmt: skip


def judged(probes: Sequence[Probe]) -> Verdict:
    """Of what was seen. A probe without a trial holds nothing; nor does a scenario without a probe."""
    return Verdict.HELD if probes and all(one.holds for one in probes) else Verdict.BROKEN


def wilson(probe: Probe) -> Share:
    """A probe's share with Wilson's interval (1927), which says of 8 out of 8 that it may be two thirds."""
    if not probe.tried:
        return Share(0.0, 0.0, 1.0)
    n, share, z2 = probe.tried, probe.passed / probe.tried, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At its ends the interval ends where the share is; the sum above says so but for the last bit.
    return Share(share, 0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half)


def total(outcomes: Sequence[Outcome]) -> Share | None:
    """The score of them all, out of 1; None where none counts.

    Its bounds are those of all scenarios at once, each at its own: that is wider than 95 %, and needs no independence.
    """
    counted = [(one.weight, share) for one in outcomes if (share := one.share) is not None]
    if not counted:
        return None
    return Share(*(_whole([(weight, getattr(share, of)) for weight, share in counted]) for of in Share.__slots__))


def tried_weight(outcomes: Sequence[Outcome]) -> float:
    """The share of all weights that is in the score."""
    weights = sum(one.weight for one in outcomes)
    return sum(one.weight for one in outcomes if one.share is not None) / weights if weights else 0.0


def worst_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What ended without a verdict on its hypothesis, then by share, the heaviest first; last what was not tried."""

    def rank(one: Outcome) -> tuple[float, int, str]:
        if one.share is not None:
            return one.share.share, -one.weight, one.name
        return (2.0 if one.verdict is Verdict.NOT_TRIED else -1.0), -one.weight, one.name

    return sorted(outcomes, key=rank)


def _whole(counted: Sequence[tuple[int, float]]) -> float:
    worst = min(share for _, share in counted)
    if worst <= 0.0:
        return 0.0
    weights = sum(weight for weight, _ in counted)
    mean = exp(sum(weight * log(share) for weight, share in counted) / weights)
    return sqrt(worst * mean)
