"""How good predictions are on a replayed trace, beside a table of p90s by the size of prompts."""

from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from guards.attainment import wilson
from guards.conformal import MISSES
from guards.prediction import BETWEEN_TOKENS, FIRST_TOKEN, Guess, Quantile
from tests.sim.replay import Moment, When

FITTED = 0.2  # of the requests, the first, are what the table is fitted on; the others are judged
TARGETS = {"first token": (When.FIRST, FIRST_TOKEN), "between tokens": (When.DONE, BETWEEN_TOKENS)}
ENOUGH = 300  # outcomes of one size, to say of it what its coverage is
OFF_MAX = 0.02


class Score(NamedTuple):
    """How good predictions were. covered: outcomes within the predicted p90.

    ours_s, table_s, refitted_s: mean pinball losses: ours; of a table fitted once; of one refitted with each outcome.
    """

    count: int
    covered: int
    ours_s: float
    table_s: float
    refitted_s: float

    @property
    def coverage(self) -> float:
        return self.covered / self.count

    @property
    def calibrated(self) -> bool:
        """Whether coverage is within 2 % of nine of ten, or cannot be told from that with so few."""
        low, high = wilson(self.covered, self.count)
        return abs(self.coverage - (1 - MISSES)) <= OFF_MAX or low <= 1 - MISSES <= high

    @property
    def sharper(self) -> bool:
        """Whether the loss is below the table's."""
        return self.ours_s < self.table_s


class Table:
    """A p90 for each size of prompt, as it was up to now."""

    def __init__(self) -> None:
        self._ranked: dict[int, list[float]] = defaultdict(list)

    def p90(self, bucket: int) -> float | None:
        """None where no such prompt was seen."""
        ranked = self._ranked[bucket]
        return ranked[min(len(ranked) - 1, int((1 - MISSES) * len(ranked)))] if ranked else None

    def note(self, bucket: int, value: float) -> None:
        insort(self._ranked[bucket], value)


class Judged(NamedTuple):
    """One prediction and what came of it."""

    actual_s: float
    ours_s: float
    table_s: float
    refitted_s: float


def forecast(moments: Sequence[Moment], target: str) -> dict[int, list[Judged]]:
    """Predict through a trace as it went, learning from outcomes as they come in; what is judged, by size of prompt.

    A table that has no p90 for a prompt is given ours.
    """
    when, kind = TARGETS[target]
    quantile, table, refitted = Quantile(kind), Table(), Table()
    fitted = FITTED * sum(one.when is When.ASKED for one in moments)
    open_: dict[int, tuple[Guess, float, float]] = {}
    found: dict[int, list[Judged]] = defaultdict(list)
    for _, at, (number, situation), value_s in moments:
        if at is When.ASKED:
            guess = quantile.guess(situation)
            open_[number] = (guess, *(one.p90(guess.bucket) or guess.p90_s for one in (table, refitted)))
        elif at is when:
            guess, table_s, refitted_s = open_.pop(number)
            if value_s is None:
                continue
            quantile.note(guess, value_s)
            refitted.note(guess.bucket, value_s)
            if number < fitted:
                table.note(guess.bucket, value_s)
            else:
                found[guess.bucket].append(Judged(value_s, guess.p90_s, table_s, refitted_s))
    return dict(sorted(found.items()))


def score(judged: Sequence[Judged]) -> Score:
    """Sum up."""
    count = len(judged)
    losses = [sum(pinball(one.actual_s, one[at]) for one in judged) / count for at in (1, 2, 3)]
    return Score(count, sum(one.actual_s <= one.ours_s for one in judged), *losses)


def pinball(actual: float, predicted: float) -> float:
    """The loss that the true p90 makes least."""
    return max((1 - MISSES) * (actual - predicted), MISSES * (predicted - actual))
