"""How often what was promised is kept, by the size of requests. Pure.

A mean over all requests hides the sizes that suffer. So promises are counted by log2 of input and log2 of output, with
intervals that say how much is known of each; and refusals are among the broken ones: who refuses the hard requests, or
drops the late ones, would look the better for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import sqrt
from typing import NamedTuple

BUCKETS = 21  # sizes, by powers of two; a million tokens and more are one
CELLS_MAX = 4096  # of one table; what is beyond is counted together
_new = tuple.__new__  # what a NamedTuple's own does, twice as fast
Z_95 = 1.96  # of an interval that holds 95 % of the time


class Verdict(StrEnum):
    """What became of a promise. A metric label.

    KEPT, LATE_FIRST, SLOW, LATE_LAST: the first of what was promised that was not kept names it.
    REFUSED: before it began. LOST: it ended otherwise than it should, not by the client's doing.
    """

    KEPT = "kept"
    LATE_FIRST = "late_first_token"
    SLOW = "slow_between_tokens"
    LATE_LAST = "late_last_token"
    REFUSED = "refused"
    LOST = "lost"


class Cell(NamedTuple):
    """A size of requests: bucket n holds those from 2**(n-1) to 2**n - 1 tokens, 0 those of none."""

    input: int
    output: int


class Kept(NamedTuple):
    """How many promises were kept, of how many."""

    kept: int
    made: int

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share is, 95 % of the time."""
        return wilson(self.kept, self.made)


class Row(NamedTuple):
    """Promises of one class to requests of one size."""

    service_class: str
    size: Cell
    kept: Kept


Broken = dict[Verdict, int]
BEYOND = ("", Cell(0, 0))  # what was counted when the table was full


@dataclass(slots=True)
class Attainment:
    """How often promises were kept, by class and size. So many cells and no more; counts only grow.

    Two tables, of two workers or two spans of time, are one by `merge`; `told` and `taken` are for JSON.
    """

    cells_max: int = CELLS_MAX
    _counts: dict[tuple[str, Cell], Broken] = field(default_factory=dict)

    def note(self, service_class: str, size: Cell, verdict: Verdict) -> None:
        """One more promise, and what became of it."""
        counts = self._counts.get((service_class, size))
        if counts is None or verdict not in counts:
            return self._count((service_class, size), verdict, 1)
        counts[verdict] += 1
        return None

    def merge(self, other: "Attainment") -> None:
        """Add what another table has."""
        for key, counts in other._counts.items():
            for verdict, times in counts.items():
                self._count(key, verdict, times)

    def rows(self) -> list[Row]:
        """All that is known, by class and size. What did not fit the table has a class without a name."""
        return [Row(name, size, _kept(counts)) for (name, size), counts in sorted(self._counts.items())]

    def verdicts(self, service_class: str) -> Mapping[Verdict, int]:
        """What became of all promises of a class."""
        sums = dict.fromkeys(Verdict, 0)
        for (name, _), counts in self._counts.items():
            if name == service_class:
                for verdict, times in counts.items():
                    sums[verdict] += times
        return sums

    def kept(self, service_class: str) -> Kept:
        """How many of a class were kept, of all sizes."""
        return _kept(self.verdicts(service_class))

    def worst(self, service_class: str | None = None) -> Row | None:
        """The size that surely fares worst: whose interval ends lowest. None where nothing was promised.

        By the share itself it would be a size of which one request was seen, and broken.
        """
        rows = [row for row in self.rows() if service_class in (None, row.service_class) and row.service_class]
        return min(rows, key=lambda row: (row.kept.interval[1], row), default=None)

    def told(self) -> list[dict[str, object]]:
        """For JSON, to be taken in elsewhere."""
        return [
            {"class": name, "input": size.input, "output": size.output, **{str(what): n for what, n in counts.items()}}
            for (name, size), counts in sorted(self._counts.items())
        ]

    def take(self, told: Iterable[Mapping[str, object]]) -> None:
        """Add what another table told. Raises ValueError where that is none; then nothing of it is added."""
        self.merge(_read(told))

    def _count(self, key: tuple[str, Cell], verdict: Verdict, times: int) -> None:
        counts = self._counts.get(key)
        if counts is None:
            if len(self._counts) >= self.cells_max:
                key = BEYOND
            counts = self._counts.setdefault(key, {})
        counts[verdict] = counts.get(verdict, 0) + times


def cell(input_tokens: int, output_tokens: int) -> Cell:
    """The size of a request. For one that was refused or lost, its answer's tokens as they were expected."""
    into = input_tokens.bit_length() if input_tokens > 0 else 0
    out = output_tokens.bit_length() if output_tokens > 0 else 0
    return _new(Cell, (into if into < BUCKETS else BUCKETS - 1, out if out < BUCKETS else BUCKETS - 1))


def wilson(successes: int, of: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval for a share (1927): right also where that is 0 or 1, and where little was seen.

    Where nothing was seen it is from 0 to 1.
    """
    if not of:
        return 0.0, 1.0
    share, square = successes / of, z * z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = z / (1 + square / of) * sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def _kept(counts: Mapping[Verdict, int]) -> Kept:
    return Kept(counts.get(Verdict.KEPT, 0), sum(counts.values()))


def _read(told: Iterable[Mapping[str, object]]) -> Attainment:
    found = Attainment()
    for row in told:
        name, size = row.get("class"), Cell(_number(row, "input"), _number(row, "output"))
        if not isinstance(name, str):
            raise ValueError(f"class is a name, not {name!r}")
        if max(size) >= BUCKETS:
            raise ValueError(f"input and output are powers of two below {BUCKETS}, not {size.input} and {size.output}")
        for what in Verdict:
            if times := _number(row, what, 0):
                found._count((name, size), what, times)
    return found


def _number(row: Mapping[str, object], name: str, default: object = None) -> int:
    value = row.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is a whole number, not {value!r}")
    return value
