"""Least squares that forget: a linear model that learns from one observation after the other. Pure.

It is recursive least squares with exponential forgetting (Haykin, «Adaptive Filter Theory»), kept as the normal
equations and not as their inverse. The inverse winds up: while nothing new is seen it grows with each step, without
bound, and the next surprise throws the model anywhere. The equations only fade, to the ridge that pulls the model to
where it began.
"""

from collections.abc import Sequence
from math import isfinite, sqrt
from operator import add, itemgetter, mul

KEEP = 0.999  # of the past, with each observation: what is a thousand old counts a third
RIDGE = 0.3  # what the start is worth, in observations whose x and weight are 1
SOLVED_EVERY = 16  # observations; a model that is so many old is as good, and solving costs more than noting


class Squares:
    """A linear model y = model . x, by weighted least squares.

    start: the model before anything was seen, and where it goes back to in directions in which nothing is seen. x and y
    are to be of size 1 or so: the ridge is the same in all directions.
    """

    __slots__ = ("_columns", "_lines", "_squares", "_sums", "_until_solved", "model", "start")

    def __init__(self, start: Sequence[float]) -> None:
        self.start = tuple(start)
        lower = [(line, column) for line in range(len(start)) for column in range(line + 1)]
        self._lines = itemgetter(*(line for line, _ in lower))
        self._columns = itemgetter(*(column for _, column in lower))
        self._squares: list[float]  # the lower triangle, line by line
        self._sums: list[float]
        self._until_solved: int
        self.model: tuple[float, ...]
        self._forget()

    def value(self, x: Sequence[float]) -> float:
        """What the model says of x."""
        return sum(map(mul, self.model, x), 0.0)

    def note(self, x: Sequence[float], y: float, weight: float) -> None:
        """Learn that x came with y. weight: how much it counts; the inverse of its variance."""
        off = weight * (y - sum(map(mul, self.start, x)))
        pairs = zip(self._squares, self._lines(x), self._columns(x))  # noqa: B905 - checking costs
        self._squares = [KEEP * old + weight * one * other for old, one, other in pairs]
        self._sums = [KEEP * old + off * one for old, one in zip(self._sums, x)]  # noqa: B905
        self._until_solved -= 1
        if not self._until_solved:
            self._until_solved = SOLVED_EVERY
            self._solve()

    def _forget(self) -> None:
        size = len(self.start)
        self._squares = [0.0] * (size * (size + 1) // 2)
        self._sums = [0.0] * size
        self._until_solved = SOLVED_EVERY
        self.model = self.start

    def _solve(self) -> None:
        """Cholesky: squares + ridge = root . root', which is positive whatever was seen."""
        root: list[list[float]] = []
        found: list[float] = []
        squares = iter(self._squares)
        for value in self._sums:
            line: list[float] = []
            for above in root:
                line.append((next(squares) - sum(map(mul, line, above))) / above[-1])
            line.append(sqrt(max(next(squares) + RIDGE - sum(map(mul, line, line)), RIDGE / 2)))
            found.append((value - sum(map(mul, line, found))) / line[-1])
            root.append(line)
        for at in reversed(range(len(found))):
            found[at] /= root[at][at]
            for before in range(at):
                found[before] -= root[at][before] * found[at]
        model = tuple(map(add, self.start, found))
        if all(map(isfinite, model)):
            self.model = model
        else:
            self._forget()
