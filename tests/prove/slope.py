"""Whether something grows, by samples that have noise, and noise that lasts: a line, and how sure it is. Pure."""

import random
from collections.abc import Sequence
from statistics import linear_regression, median
from typing import NamedTuple

BIN_S = 20.0  # of which the median is taken: one sample's moment is not what grows
BLOCK_S = 180.0  # of residuals that are drawn together: a heap that has grown stays grown for a while
DRAWS, SEED = 1000, 7
BINS_MIN = 6  # for a line to say anything


class Slope(NamedTuple):
    """What a series does on the whole, per second: the line, and where it is with a probability of 95 %.

    span_s: of the series. noise: how far apart the middle 95 % of its samples are, around the line.
    """

    per_s: float
    low: float
    high: float
    span_s: float
    noise: float

    @property
    def grown(self) -> float:
        """By how much, over all of it."""
        return self.per_s * self.span_s

    @property
    def inside_noise(self) -> bool:
        """Whether nothing grows: the line may as well be flat, or what it adds in all is less than the noise."""
        return self.low <= 0 or self.grown <= self.noise


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Fit a line by least squares to medians of BIN_S; its interval is by a moving-block bootstrap of the residuals.

    points: of time in seconds, ascending, and value. Raises ValueError where they are too few to say anything.
    """
    bins = _bins(points)
    if len(bins) < BINS_MIN:
        raise ValueError(f"{len(bins)} times {BIN_S:g} s are too few for a slope: {BINS_MIN} are needed")
    times = [at_s for at_s, _ in bins]
    per_s, start = linear_regression(times, [value for _, value in bins])
    fitted = [start + per_s * at_s for at_s in times]
    residuals = [value - line for (_, value), line in zip(bins, fitted, strict=True)]
    rng, length = random.Random(SEED), min(round(BLOCK_S / BIN_S), len(bins) // 2)
    drawn = sorted(_steepness(times, fitted, _again(residuals, length, rng)) for _ in range(DRAWS))
    around = sorted(value - start - per_s * at_s for at_s, value in points)
    noise = around[int(0.975 * (len(around) - 1))] - around[int(0.025 * (len(around) - 1))]
    return Slope(per_s, drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS)], points[-1][0] - points[0][0], noise)


def _bins(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found: dict[int, list[tuple[float, float]]] = {}
    for at_s, value in points:
        found.setdefault(int(at_s / BIN_S), []).append((at_s, value))
    return [(median(at_s for at_s, _ in many), median(value for _, value in many)) for many in found.values()]


def _steepness(times: Sequence[float], fitted: Sequence[float], residuals: Sequence[float]) -> float:
    return linear_regression(times, [line + off for line, off in zip(fitted, residuals, strict=True)]).slope


def _again(residuals: Sequence[float], length: int, rng: random.Random) -> list[float]:
    """As many residuals, in blocks that begin anywhere."""
    drawn: list[float] = []
    while len(drawn) < len(residuals):
        begin = rng.randrange(len(residuals) - length + 1)
        drawn += residuals[begin : begin + length]
    return drawn[: len(residuals)]
