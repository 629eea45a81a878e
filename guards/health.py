"""Evidence about a replica -> verdict. Pure.

A replica is down as soon as its process is known to be gone (connection refused, or its API answers
that the engine is dead), and after `STRIKES` probes in a row without a proper answer: on a starved machine
a healthy server misses one. A hang is found by other evidence (guards/evidence.py). It is up again after one
good probe, which for one that was down includes a request for one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

STRIKES = 3  # probes in a row without a proper answer


class Probe(Enum):
    """What one look at a replica's /health showed."""

    GOOD = "answers"
    DEAD = "its engine is dead"
    REFUSED = "cannot be reached"
    SILENT = "does not answer"
    ODD = "does not answer as vLLM does"
    KEY = "refuses the upstream key"
    WRONG = "does not serve the model"
    COLD = "answers, but computes nothing yet"


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one replica. `up` is None until the first probe.

    gone: it is known to compute nothing any more, so its streams need not wait for their own timers. A
    replica that merely does not answer is not `gone`: its streams may well be making progress.
    hung: it was ejected on other evidence than probes.
    """

    up: bool | None = None
    why: str = "not probed yet"
    missed: int = 0
    gone: bool = False
    hung: bool = False

    def after(self, probe: Probe) -> "Health":
        """Weigh one more probe."""
        if probe is Probe.GOOD:
            return Health(up=True, why=probe.value)
        missed = self.missed + 1
        if probe in (Probe.SILENT, Probe.ODD) and missed < STRIKES and self.up:
            return replace(self, missed=missed)
        gone = probe in (Probe.DEAD, Probe.REFUSED)
        return Health(up=False, why=probe.value, missed=missed, gone=gone)

    @staticmethod
    def ejected(signals: Sequence[str]) -> "Health":
        """The verdict over a server that hangs."""
        return Health(up=False, why="hangs: " + ", ".join(signals), gone=True, hung=True)
