"""When clients come, in an open loop: whatever became of those before them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ARRIVALS_MAX = 1_000_000  # of one run


@dataclass(frozen=True, slots=True)
class Due:
    """One client. at_s: after the begin of the run; step: which of the rates it belongs to; number: its place."""

    at_s: float
    step: int
    number: int


def poisson(rates_per_s: Sequence[float], each_s: float, seed: str) -> Iterator[Due]:
    """Clients that know nothing of each other: so many a second on average, one rate after the other for each_s."""
    rng, number = random.Random(seed), 0
    for step, rate in enumerate(rates_per_s):
        at_s = step * each_s
        while rate > 0 and (at_s := at_s + rng.expovariate(rate)) < (step + 1) * each_s and number < ARRIVALS_MAX:
            yield Due(at_s, step, number)
            number += 1
