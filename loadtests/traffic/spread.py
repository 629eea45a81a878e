"""How sure a median is: bootstrap intervals (Efron 1979, the percentile method), with a seed of their own."""

import random
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

DRAWS, SEED = 1000, 7
VALUES_MAX = 5000  # beyond, a sample of them: the interval is narrow by then


class Interval(NamedTuple):
    """A median, and where it is with a probability of 95 %. values: how many it is of."""

    median: float
    low: float
    high: float
    values: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def interval(values: Sequence[float]) -> Interval | None:
    """Of one sample; None where it is empty."""
    if not values:
        return None
    rng = random.Random(SEED)
    some = list(values) if len(values) <= VALUES_MAX else rng.sample(list(values), VALUES_MAX)
    drawn = sorted(median(rng.choices(some, k=len(some))) for _ in range(_draws(len(some))))
    return Interval(median(values), *_middle(drawn), len(values))


def difference(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Of the second's median from the first's, two samples that have nothing to do with each other."""
    if not before or not after:
        return None
    rng = random.Random(SEED)
    drawn = sorted(
        median(rng.choices(after, k=len(after))) - median(rng.choices(before, k=len(before)))
        for _ in range(_draws(len(before) + len(after)))
    )
    return Interval(median(after) - median(before), *_middle(drawn), min(len(before), len(after)))


def _draws(count: int) -> int:
    """Fewer where each is dear."""
    return max(200, min(DRAWS, 1_000_000 // max(1, count)))


def _middle(ranked: Sequence[float]) -> tuple[float, float]:
    return ranked[int(0.025 * len(ranked))], ranked[min(len(ranked) - 1, int(0.975 * len(ranked)))]
