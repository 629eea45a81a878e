"""A quantile that is as often exceeded as it should be, whatever the values do. Pure.

Adaptive conformal inference (Gibbs and Candès, «Adaptive Conformal Inference Under Distribution Shift», 2021): the
share of recent values that the quantile is read at is itself moved, up after each miss and down after each hit. So the
share of misses comes to what was asked for also where values drift, or are noted late. Nothing is assumed of them.
"""

from array import array
from bisect import bisect_left, insort
from math import inf, sqrt

MISSES = 0.1  # the share of values that may be above: the quantile is a p90
WINDOW = 1024  # values that are remembered
ENOUGH = 32  # of them make a quantile
STEP_MOST = 0.05  # however early
_LEAST, _MOST = -0.05, 0.5  # between which the share is moved: one that winds up needs as long to come back


class Conformal:
    """Values of one kind, and the quantile of them that the next will exceed as often as is right.

    step: how fast it adapts. Its misses of so many values are off by 1 / (step * values) at most.
    early: how much faster to begin with, over the square root of the values so far; 0 for not at all. (Angelopoulos,
        Barber and Bates, «Online conformal prediction with decaying step sizes», 2024; ours decays to `step` alone.)

    threshold: the quantile, adapted; plain: as it stands; most: the largest value that is remembered. Without bound
        while there is none.
    """

    __slots__ = ("_adapted", "_at", "_early", "_order", "_ranked", "_share", "_step", "most", "plain", "threshold")

    def __init__(self, step: float, early: float = 0.0) -> None:
        self._step, self._early, self._share = step, early, MISSES
        self._adapted = 0
        self._order, self._ranked = array("d"), array("d")
        self._at = 0  # of the oldest in the order, once it is full
        self.threshold = self.plain = self.most = inf

    @property
    def enough(self) -> bool:
        """Whether it has seen enough to be asked."""
        return len(self._ranked) >= ENOUGH

    def note(self, value: float) -> None:
        """Remember a value."""
        if len(self._order) < WINDOW:
            self._order.append(value)
        else:
            del self._ranked[bisect_left(self._ranked, self._order[self._at])]
            self._order[self._at] = value
            self._at = (self._at + 1) % WINDOW
        insort(self._ranked, value)
        self._read()

    def adapt(self, missed: bool) -> None:
        """Learn whether a value was above the threshold, as that was when it was asked for."""
        self._adapted += 1
        step = max(self._step, min(STEP_MOST, self._early / sqrt(self._adapted)))
        self._share = max(_LEAST, min(_MOST, self._share + step * (MISSES - missed)))
        self._read()

    def _read(self) -> None:
        """Look the quantiles up: they are asked for more often than anything is learnt."""
        ranked, count = self._ranked, len(self._ranked)
        if count:
            self.threshold = ranked[max(0, min(count - 1, int((1.0 - self._share) * (count + 1))))]
            self.plain, self.most = ranked[int((1.0 - MISSES) * count)], ranked[-1]
