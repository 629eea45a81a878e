"""A breaker on cost: trips when a budget burns too fast to last its period, long before it is gone. Pure.

Burn rate 1 spends a budget exactly by the end of its period. A tier trips when both of its windows burn above its rate:
the long one, so that a short peak is no alarm, and one a twelfth as long, so that the alarm ends when the fire does
(Google, «The Site Reliability Workbook», chapter 5: multiwindow, multi-burn-rate alerts). Money is unlike errors: it
normally burns near 1, so no tier is near 1.

After a trip nothing passes for a while; then a little money does, whatever number of requests it is. How that burns
decides. Counting probes instead would let one of unlimited length through.
"""

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

SHORT = 12  # how much shorter the short window of a tier is
BUCKETS_PER_SHORT = 15  # how finely money is dated: a fifteenth of the shortest window
CALM_WINDOWS = 2  # short windows below half the rate that end a trip
PASS_SHARE = 0.01  # of what is left of the budget may be spent to try whether the fire is out
FLOOR_SHARE = 0.01  # of the budget; less than that in a long window is no fire, however fast
HOLDS_FLOOR = 3  # nor is what so many of the largest holds could have spent: that is chance
PAUSE_WINDOWS = 1.5  # short windows; what was spent until the trip, and ended streams are charged, is out of them then
PAUSES_MAX = 6  # doublings of the first pause


class State(StrEnum):
    """What a breaker does to new requests; a closed one lets money pass, as an electric one does current."""

    CLOSED = "closed"
    DEGRADED = "degraded"  # shorter answers, a cheaper model
    OPEN = "open"  # nothing, for a while
    HALF_OPEN = "half-open"  # a little money's worth


class Tier(NamedTuple):
    """One alarm. rate: above which both windows must burn; state: what it trips to."""

    long_s: float
    rate: float
    state: State

    @property
    def short_s(self) -> float:
        return self.long_s / SHORT


# Five and ten per cent of a day's budget, two and five of a month's.
DAY = (Tier(900, 4.8, State.OPEN), Tier(3_600, 2.4, State.DEGRADED))
MONTH = (Tier(3_600, 14.4, State.OPEN), Tier(21_600, 6.0, State.DEGRADED))


class Burn:
    """What was spent lately, dated by buckets. Times in seconds of a monotonic clock, money in any one unit."""

    def __init__(self, bucket_s: float, kept_s: float) -> None:
        self._bucket_s = bucket_s
        self._kept = int(kept_s / bucket_s) + 1
        self._buckets: deque[tuple[int, int]] = deque()  # number of a bucket, and what was spent in it

    def note(self, spent: int, now_s: float) -> None:
        """Take in what was spent now."""
        number = int(now_s / self._bucket_s)
        if self._buckets and self._buckets[-1][0] >= number:
            last, before = self._buckets.pop()
            self._buckets.append((last, before + spent))
        else:
            self._buckets.append((number, spent))
        while self._buckets[0][0] <= number - self._kept:
            self._buckets.popleft()

    def within(self, window_s: float, now_s: float) -> int:
        """What was spent in the last so many seconds, or up to one bucket longer."""
        first = int((now_s - window_s) / self._bucket_s)
        return sum(spent for number, spent in self._buckets if number >= first)


class Breaker:
    """One budget's breaker. Whoever serves requests notes what they spend, looks before each, and asks for passes.

    period_s: how long the budget must last; tiers: its alarms.
    state: as of the last look; pass_left: money that may still be spent while half-open.
    """

    def __init__(self, period_s: float, tiers: Sequence[Tier]) -> None:
        assert tiers
        self._period_s, self._tiers = period_s, tuple(tiers)
        shortest_s = min(tier.short_s for tier in tiers)
        self._burn = Burn(shortest_s / BUCKETS_PER_SHORT, max(tier.long_s for tier in tiers))
        self._tripped = self._tiers[0]  # the last tier that did
        self._pauses = 0  # trips in a row
        self._until_s = 0.0
        self.state = State.CLOSED
        self.pass_left = 0

    def note(self, spent: int, now_s: float) -> None:
        """Money was charged."""
        self._burn.note(spent, now_s)

    def look(self, now_s: float, *, budget: int, left: int, running: int, largest_hold: int) -> State:
        """What holds for a request that comes now.

        budget, left: of the whole period, and not spent of it.
        running: what the requests that run now have cost so far, or will soon: it is not charged yet, and burns.
        largest_hold: of one request, lately.
        """
        tripped = self._trips(now_s, budget, running, largest_hold)
        if self.state is State.OPEN:
            if now_s >= self._until_s:
                self.state, self.pass_left = State.HALF_OPEN, int(left * PASS_SHARE)
                self._until_s = now_s + CALM_WINDOWS * self._tripped.short_s
        elif self.state is State.HALF_OPEN:
            if not self._calm(now_s, budget, running):
                self._open(now_s)
            elif now_s >= self._until_s:
                self.state, self._pauses = State.CLOSED, 0
        elif tripped is not None and tripped.state is State.OPEN:
            self._tripped = tripped
            self._open(now_s)
        elif tripped is not None:
            self._tripped, self.state = tripped, State.DEGRADED
        elif self.state is State.DEGRADED and self._calm(now_s, budget, running):
            self.state = State.CLOSED
        return self.state

    def take(self, money: int) -> bool:
        """Whether a request may hold so much while half-open; then the pass is so much smaller."""
        if self.state is not State.HALF_OPEN or money > self.pass_left:
            return False
        self.pass_left -= money
        return True

    def give_back(self, money: int) -> None:
        """Some of what was held under a pass was not spent; of a pass that is over nothing comes back."""
        if self.state is State.HALF_OPEN:
            self.pass_left += money

    def retry_after_s(self, now_s: float) -> float:
        """When a request that was refused may be tried again."""
        return max(0.0, self._until_s - now_s)

    def rate(self, window_s: float, now_s: float, budget: int, running: int = 0) -> float:
        """How fast the budget burns: 1 is just to its period's end. A budget of nothing does not burn, it is gone."""
        spent = self._burn.within(window_s, now_s) + running
        return spent * self._period_s / (window_s * budget) if budget else 0.0

    def _trips(self, now_s: float, budget: int, running: int, largest_hold: int) -> Tier | None:
        """The gravest tier both of whose windows burn too fast."""
        floor = max(budget * FLOOR_SHARE, HOLDS_FLOOR * largest_hold)
        found = None
        for tier in self._tiers:
            if self._burn.within(tier.long_s, now_s) + running <= floor:
                continue
            windows = (tier.long_s, tier.short_s)
            fast = all(self.rate(window_s, now_s, budget, running) > tier.rate for window_s in windows)
            if fast and (found is None or tier.state is State.OPEN):
                found = tier
        return found

    def _calm(self, now_s: float, budget: int, running: int) -> bool:
        return self.rate(self._tripped.short_s, now_s, budget, running) < self._tripped.rate / 2

    def _open(self, now_s: float) -> None:
        pause_s = PAUSE_WINDOWS * self._tripped.short_s * 2 ** min(self._pauses, PAUSES_MAX)
        self.state, self.pass_left, self._until_s = State.OPEN, 0, now_s + pause_s
        self._pauses += 1
