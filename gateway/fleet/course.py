"""How a replica was doing in the last few rounds of probes."""

from collections import deque
from typing import NamedTuple

from gateway.fleet.gauges import Gauges
from guards.peers import Vitals

ROUNDS = 5  # of probes, whose gaps are one mean: at one a second, an engine that turned slow is seen within seconds
GAPS_LEAST = 5  # that say something


class _Look(NamedTuple):
    at_s: float
    gaps: int
    gaps_s: float
    preemptions: float | None


class Course:
    """Snapshots of what a replica counts, and what they come to. Times in seconds."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=ROUNDS + 1)

    def note(self, now_s: float, gaps: int, gaps_s: float, gauges: Gauges | None) -> None:
        """Take one. gaps, gaps_s: how many gaps between tokens there were, ever, and their sum."""
        self._looks.append(_Look(now_s, gaps, gaps_s, gauges.preemptions if gauges is not None else None))

    def vitals(self, gauges: Gauges | None) -> Vitals:
        """What the last rounds come to. gauges: those that hold now."""
        if not self._looks:
            return Vitals()
        first, last = self._looks[0], self._looks[-1]
        gaps, span_s = last.gaps - first.gaps, last.at_s - first.at_s
        gap_s = (last.gaps_s - first.gaps_s) / gaps if gaps >= GAPS_LEAST else None
        per_s = None
        if first.preemptions is not None and last.preemptions is not None and span_s > 0:
            per_s = max(0.0, last.preemptions - first.preemptions) / span_s  # a server that was started anew has none
        if gauges is None:
            return Vitals(gap_s)
        return Vitals(gap_s, gauges.waiting, gauges.kv_used, per_s)
