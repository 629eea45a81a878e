"""How long the gaps between a server's tokens are, and from what silence on to worry. Pure.

A timeout that fits every server does not exist: healthy gaps are 10 ms on one and 700 ms on another that is
starved. So each replica is measured against its own p99.9.
"""

from collections.abc import Iterable
from math import frexp, inf

WINDOW = 2048  # gaps before the older half of what is known is forgotten: a server that turned slow is learnt
STEPS = 4  # buckets per doubling: a quantile is read 25 % too high at most, never too low
_LOWEST, _HIGHEST = -10, 7  # as powers of two: gaps below 0.5 ms and above 128 s are told apart no further
_LEAST_S = 2.0 ** (_LOWEST - 1)
_BUCKETS = (_HIGHEST - _LOWEST + 1) * STEPS


class Rhythm:
    """Gaps of one kind, in seconds: what is usual, and `patience_s`, what is not.

    unknown_s: patience while fewer than `enough` gaps were seen.
    least_s: patience never falls below this, however fast the server.
    most_s: nor does it rise above this, but where p99.9 itself is longer: a few slow gaps are seen by all streams at
        once, and thrice as long as those would be too late for everybody.
    factor: silence is suspicious at so many times p99.9.
    """

    __slots__ = ("_before", "_enough", "_factor", "_least_s", "_most_s", "_now", "_until_weighed", "patience_s")

    def __init__(
        self, *, unknown_s: float, least_s: float, most_s: float = inf, factor: float = 3.0, enough: int = 100
    ) -> None:
        self._least_s, self._most_s, self._factor, self._enough = least_s, most_s, factor, enough
        self._before = [0] * _BUCKETS
        self._now = [0] * _BUCKETS
        self._until_weighed = enough
        self.patience_s = unknown_s

    def note(self, gaps_s: Iterable[float]) -> None:
        """Take in gaps."""
        for gap_s in gaps_s:
            mantissa, power = frexp(gap_s if gap_s > _LEAST_S else _LEAST_S)  # gap = mantissa * 2**power
            bucket = (power - _LOWEST - 1) * STEPS + int(mantissa * 2 * STEPS) if power <= _HIGHEST else _BUCKETS - 1
            self._now[bucket] += 1
            self._until_weighed -= 1
            if not self._until_weighed:  # not at every gap: this is the path of every chunk
                self._weigh()

    def quantile_s(self, share: float) -> float:
        """An upper bound of that share of the gaps; 0.0 when there are none."""
        counts = [old + new for old, new in zip(self._before, self._now, strict=True)]
        above = sum(counts) * (1.0 - share)
        for number in range(_BUCKETS - 1, -1, -1):
            if counts[number] and counts[number] > above:
                return _upper_s(number)
            above -= counts[number]
        return 0.0

    def _weigh(self) -> None:
        self._until_weighed = self._enough
        usual_s = self.quantile_s(0.999)
        self.patience_s = max(self._least_s, min(self._factor * usual_s, max(self._most_s, usual_s)))
        if sum(self._now) >= WINDOW:
            self._before, self._now = self._now, [0] * _BUCKETS


def _upper_s(number: int) -> float:
    power, step = divmod(number, STEPS)
    return float(2.0 ** (power + _LOWEST) * (0.5 + (step + 1) / (2 * STEPS)))
