"""Many durations in little room: how many fell between two powers of a number."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import ceil, exp, log

GROWTH = 1.04  # from one bucket to the next: a quantile is at most two percent off
LEAST_S = 1e-5  # below, all is one bucket
_LOG = log(GROWTH)

Buckets = Mapping[int, int]


def bucket(seconds: float) -> int:
    """The number of the bucket that a duration falls into."""
    return max(0, ceil(log(max(seconds, LEAST_S) / LEAST_S) / _LOG - 1e-9))


def middle_s(number: int) -> float:
    """What a bucket stands for: the geometric middle of its ends, in seconds."""
    return LEAST_S * exp(_LOG * (number - 0.5))


def counted(durations_s: Iterable[float]) -> dict[int, int]:
    """Durations in seconds, as buckets."""
    return dict(Counter(map(bucket, durations_s)))


def together(many: Iterable[Buckets]) -> Counter[int]:
    """All of them in one."""
    found: Counter[int] = Counter()
    for one in many:
        found.update(one)
    return found


def quantile_s(buckets: Buckets, share: float) -> float | None:
    """The duration that a share of all are not above, in seconds; None where there is none."""
    wanted = share * sum(buckets.values())
    seen = 0
    for number in sorted(buckets):
        seen += buckets[number]
        if seen >= wanted and seen:
            return middle_s(number)
    return None
