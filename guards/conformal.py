"""A quantile that is as often exceeded as it should be, whatever the values do. Pure.

Adaptive conformal inference (Gibbs and Candès, «Adaptive Conformal Inference Under Distribution Shift», 2021): the
share of recent values that the quantile is read at is itself moved, up after each miss and down after each hit. So the
share of misses comes to what was asked for also where values drift, or are noted late. Nothing is assumed of them.
"""

from array import array
from bisect import bisect_left, insort
from math import sqrt

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
    """

    __slots__ = ("_adapted", "_at", "_early", "_order", "_ranked", "_share", "_step")

    def __init__(self, step: float, early: float = 0.0) -> None:
        self._step, self._early, self._share = step, early, MISSES
        self._adapted = 0
        self._order, self._ranked = array("d"), array("d")
        self._at = 0  # of the oldest in the order, once it is full

    @property
    def enough(self) -> bool:
        """Whether it has seen enough to be asked."""
        return len(self._ranked) >= ENOUGH

    @property
    def most(self) -> float:
        """The largest value that is remembered."""
        return self._ranked[-1]

    @property
    def plain(self) -> float:
        """The quantile as it stands, not adapted."""
        return self._ranked[int((1.0 - MISSES) * len(self._ranked))]

    @property
    def threshold(self) -> float:
        """The quantile, adapted. Some value must have been noted."""
        count = len(self._ranked)
        return self._ranked[max(0, min(count - 1, int((1.0 - self._share) * (count + 1))))]

    def note(self, value: float) -> None:
        """Remember a value."""
        if len(self._order) < WINDOW:
            self._order.append(value)
        else:
            del self._ranked[bisect_left(self._ranked, self._order[self._at])]
            self._order[self._at] = value
            self._at = (self._at + 1) % WINDOW
        insort(self._ranked, value)

    def adapt(self, missed: bool) -> None:
        """Learn whether a value was above the threshold, as that was when it was asked for."""
        self._adapted += 1
        step = max(self._step, min(STEP_MOST, self._early / sqrt(self._adapted)))
        self._share = max(_LEAST, min(_MOST, self._share + step * (MISSES - missed)))
