"""How much per minute: the generic cell rate algorithm, with refunds. Pure.

One number says all of a rate's past: the theoretical arrival time, when all that was taken will have been earned. It is
exact, and has no boundary at which twice the limit passes, as fixed windows have (ITU-T I.371; used for the same by
Brandur Leach's «Rate Limiting, Cells, and GCRA»). Refunds are ours: a request takes what it may use, and gives back
what it has not.

Times are whole nanoseconds of one monotonic clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil
from typing import NamedTuple

SECOND_NS = 1_000_000_000
STEP_S = 0.25  # a throttled stream comes in so many steps: a timer for each token would cost more than it brings


class Counted(StrEnum):
    """What a rate counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"  # input and output together
    OF_STREAM = "tokens per stream"  # output, of each one by itself


class Taken(NamedTuple):
    """Part of a rate. until_ns: when it will have been earned, if all goes on as it is."""

    cost: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units each `period_s`, and `burst` of them at once after a rest.

    Functions take the rate's state, `earned_ns`, 0 for one that nothing was ever taken of, and give the next one.
    """

    units: int
    period_s: int
    burst: int

    @property
    def interval_ns(self) -> int:
        """For one unit; rounded up, never faster than what was promised."""
        return -(-self.period_s * SECOND_NS // self.units)

    def part(self, count: int) -> "Rate":
        """One of so many that never give more than this, together; to be asked for where the burst is as many."""
        if not self.units % count:
            return Rate(self.units // count, self.period_s, self.burst // count)
        return Rate(self.units, self.period_s * count, self.burst // count)

    def wait_ns(self, earned_ns: int, now_ns: int, cost: int) -> int:
        """How long until so much can be taken; 0 for now. Raises ValueError where it is more than the burst: never."""
        if cost > self.burst:
            raise ValueError(f"{cost} at once is more than the burst of {self.burst}")
        return max(0, max(earned_ns, now_ns) + (cost - self.burst) * self.interval_ns - now_ns)

    def take(self, earned_ns: int, now_ns: int, cost: int) -> tuple[int, Taken]:
        """Take so much: the next state, and what to give back of it later. To be asked for first: `wait_ns` is 0."""
        until_ns = max(earned_ns, now_ns) + cost * self.interval_ns
        return until_ns, Taken(cost, until_ns)

    def give_back(self, earned_ns: int, now_ns: int, taken: Taken, unused: int) -> int:
        """The next state, after some of what was taken was not used.

        What has been earned again by now is not given back twice: whoever took it after that would be served beyond the
        rate, by just as much.
        """
        assert 0 <= unused <= taken.cost
        owed_ns = max(0, taken.until_ns - now_ns)
        return earned_ns - min(unused * self.interval_ns, owed_ns)

    def owe(self, earned_ns: int, now_ns: int, cost: int) -> int:
        """The next state, after so much was used that was not taken: whoever comes next waits for it."""
        return max(earned_ns, now_ns) + cost * self.interval_ns

    def left(self, earned_ns: int, now_ns: int) -> int:
        """How much could be taken at once now; never below 0, also where more is owed."""
        return max(0, self.burst - -(-max(0, earned_ns - now_ns) // self.interval_ns))

    def full_in_ns(self, earned_ns: int, now_ns: int) -> int:
        """How long until the whole burst can be taken."""
        return max(0, earned_ns - now_ns)


class Throttle:
    """How much of a stream may have been delivered by now, so that it comes no faster than its rate.

    Nobody looks with each token: a stream is told how much it may have, and asks again when it has had that.

    clock: monotonic, in nanoseconds. step_s: how often it is worth to ask again, in seconds. rate: with a step's worth
    at once, at least.
    """

    __slots__ = ("_clock", "_earned_ns", "_most", "_taken", "rate", "step_s")

    def __init__(self, rate: Rate, clock: Callable[[], int]) -> None:
        self.step_s = max(STEP_S, rate.interval_ns / SECOND_NS)
        step = ceil(self.step_s * SECOND_NS / rate.interval_ns)  # less at once would be less than the rate
        self.rate, self._clock = replace(rate, burst=max(rate.burst, step)), clock
        self._earned_ns = self._most = 0
        self._taken = Taken(0, 0)

    def most(self, delivered: int, *, hungry: bool = False) -> int:
        """How much may be delivered in all, from now on, of a stream that has had so much of it.

        All that there is is taken, and given back the next time where it was not used.
        hungry: something waits that is more than it may have: then it is saved for, also beyond the burst.
        """
        now_ns, rate = self._clock(), self.rate
        earned_ns, saved = self._earned_ns, max(0, self._most - delivered)
        if not (hungry and saved):
            unused = min(saved, self._taken.cost)  # less may be delivered than was said before
            earned_ns, saved = rate.give_back(earned_ns, now_ns, self._taken, unused), 0
        left = rate.left(earned_ns, now_ns)
        self._earned_ns, self._taken = rate.take(earned_ns, now_ns, left)
        self._most = delivered + saved + left
        return self._most


class RateLine(NamedTuple):
    """One rate that a request is under, and whose it is."""

    scope: str
    counted: Counted
    rate: Rate


def duration(nanoseconds: int) -> str:
    """A time as OpenAI's headers say it: 20ms, 1.5s, 6m0s."""
    milliseconds = -(-nanoseconds // 1_000_000)
    minutes, rest = divmod(milliseconds, 60_000)
    if minutes:
        return f"{minutes}m{-(-rest // 1000)}s"
    return f"{rest}ms" if rest < 1000 else f"{rest / 1000:g}s"
