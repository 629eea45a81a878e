"""A breaker on cost: trips when a budget burns too fast to last its period, long before it is gone. Pure.

Burn rate 1 spends a budget exactly by the end of its period. A tier trips when both of its windows burn above its rate:
the long one, so that a short peak is no alarm, and one a twelfth as long, so that the alarm ends when the fire does
(Google, «The Site Reliability Workbook», chapter 5: multiwindow, multi-burn-rate alerts). Money is unlike errors: it
normally burns near 1, so no tier is near 1.

After a trip nothing passes for a while; then a little money does, whatever number of requests it is. How that burns
decides. Counting probes instead would let one of unlimited length through.

Leaf before parent: what was spent through a narrower scope is known apart, and forgotten when that scope's own breaker
opens. So the wider one does not trip on money that is stopped already, and one key cannot shut out its whole org.
"""

from array import array
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from guards.budget import Line, Window

SHORT = 12  # how much shorter the short window of a tier is
BUCKETS_PER_SHORT = 15  # how finely money is dated: a fifteenth of the short window
CALM_WINDOWS = 2  # short windows below half the rate that end a trip
PASS_SHARE = 0.01  # of what is left of the budget may be spent to try whether the fire is out
FLOOR_SHARE = 0.01  # of the budget; less than that in a long window is no fire, however fast
REQUESTS_FLOOR = 3  # nor is what so many of the largest requests have spent: that is chance
BLAME_SHARE = 0.5  # of what burns: above it, one leaf is the fire
LEAVES_MAX = 4096  # that one breaker knows apart
PAUSE_WINDOWS = 1.5  # short windows; what was spent until the trip, and ended streams are charged, is out of them then
PAUSES_MAX = 6  # doublings of the first pause

_KEPT = BUCKETS_PER_SHORT * SHORT + 1  # buckets; with the one that has just begun


class State(StrEnum):
    """What a breaker does to new requests; a closed one lets money pass, as an electric one does current."""

    CLOSED = "closed"
    DEGRADED = "degraded"  # shorter answers
    CHEAPER = "cheaper"  # and of a cheaper model, since that was not enough
    OPEN = "open"  # nothing, for a while
    HALF_OPEN = "half-open"  # a little money's worth


class Tier(NamedTuple):
    """One alarm. rate: above which both windows must burn; state: what it trips to, DEGRADED or OPEN."""

    long_s: float
    rate: float
    state: State

    @property
    def short_s(self) -> float:
        return self.long_s / SHORT


# Five and ten per cent of a day's budget, two and five of a month's.
DAY = (Tier(900, 4.8, State.OPEN), Tier(3_600, 2.4, State.DEGRADED))
MONTH = (Tier(3_600, 14.4, State.OPEN), Tier(21_600, 6.0, State.DEGRADED))
PERIODS_S = {Window.DAY: 86_400.0, Window.MONTH: 30 * 86_400.0}  # shorter ones are over before a fire is


class Plan(NamedTuple):
    """How a scope's limits are watched; no tiers: not at all. answer_tokens: what an answer may have while degraded."""

    day: tuple[Tier, ...] = DAY
    month: tuple[Tier, ...] = MONTH
    answer_tokens: int = 1024

    def tiers(self, window: Window) -> tuple[Tier, ...]:
        """The alarms of a limit; none for a window that has no breaker."""
        return {Window.DAY: self.day, Window.MONTH: self.month}.get(window, ())


OFF = Plan((), ())


class Watched(NamedTuple):
    """One limit whose burning is watched, and in whose hands: its own scope's, or those of a key within it."""

    scope: str
    line: Line
    plan: Plan


class Turn(NamedTuple):
    """A breaker that is in another state than before. ended: requests that were running, and had to end."""

    scope: str
    line: Line
    model: str
    before: State
    after: State
    why: str
    ended: int = 0


class Burn:
    """What was spent lately, as one tier sees it. Times in seconds of a monotonic clock, money in any one unit.

    long, short: spent in the tier's windows, or up to one bucket longer, as of the last `pass_time` or `note`.
    """

    __slots__ = ("_bucket_s", "_number", "_spent", "long", "short")

    def __init__(self, tier: Tier) -> None:
        self._bucket_s = tier.short_s / BUCKETS_PER_SHORT
        self._spent = array("q", bytes(8 * _KEPT))
        self._number = 0  # of the newest bucket
        self.long = self.short = 0

    def pass_time(self, now_s: float) -> None:
        """Forget what is older than the windows."""
        number, spent = int(now_s / self._bucket_s), self._spent
        if number - self._number >= _KEPT:
            self._spent, self.long, self.short, self._number = array("q", bytes(8 * _KEPT)), 0, 0, number
            return
        while self._number < number:
            self._number += 1
            self.short -= spent[(self._number - BUCKETS_PER_SHORT - 1) % _KEPT]
            self.long -= spent[self._number % _KEPT]
            spent[self._number % _KEPT] = 0

    def note(self, money: int, now_s: float) -> None:
        """Take in what was spent since the last time; below 0 where that was too much."""
        self.pass_time(now_s)
        self._spent[self._number % _KEPT] += money
        self.long += money
        self.short += money

    def strike(self, other: "Burn", now_s: float) -> None:
        """Forget what another of the same tier has, which was spent here too."""
        self.pass_time(now_s)
        other.pass_time(now_s)
        for at, money in enumerate(other._spent):
            self._spent[at] -= money
        self.long -= other.long
        self.short -= other.short


class Breaker:
    """One budget's breaker. Whoever serves requests notes what they spend as they do, looks, and asks for passes.

    period_s: how long the budget must last; tiers: its alarms.
    state: as of the last look; pass_left: money that may still be spent while half-open; trial: which half-open it is.
    """

    __slots__ = (
        "_burns", "_largest", "_leaves", "_pauses", "_period_s", "_since_s", "_tiers", "_tripped", "_turned_s",
        "_until_s", "pass_left", "state", "trial",
    )  # fmt: skip

    def __init__(self, period_s: float, tiers: Sequence[Tier]) -> None:
        assert tiers
        self._period_s, self._tiers = period_s, tuple(tiers)
        self._burns = self._anew()
        self._leaves: dict[str, tuple[Burn, ...]] = {}
        self._largest = (0, 0)  # request, in this long window and the one before
        self._turned_s = -1e9  # when this one began
        self._tripped = self._tiers[0]  # the last tier that did
        self._since_s = 0.0  # degraded
        self._pauses = 0  # trips in a row
        self._until_s = 0.0
        self.state = State.CLOSED
        self.pass_left = self.trial = 0

    def note(self, spent: int, now_s: float, *, request: int, leaves: Iterable[str] = ()) -> None:
        """Money was spent. request: by one request, in all so far; leaves: the narrower scopes that it went through."""
        for burn in self._burns:
            burn.note(spent, now_s)
        kept_s = self.kept_s
        if now_s - self._turned_s > kept_s:
            before = self._largest[0] if now_s - self._turned_s <= 2 * kept_s else 0
            self._largest, self._turned_s = (0, before), now_s
        if request > self._largest[0]:
            self._largest = request, self._largest[1]
        for leaf in leaves:
            for burn in self._leaf(leaf, now_s):
                burn.note(spent, now_s)

    @property
    def kept_s(self) -> float:
        """How long spending is remembered."""
        return max(tier.long_s for tier in self._tiers)

    def look(self, now_s: float, *, budget: int, left: int) -> State:
        """What holds for a request that comes now. budget, left: of the whole period, and not spent of it."""
        tripped = self.alarm(now_s, budget)
        if self.state is State.OPEN:
            if now_s >= self._until_s:
                self.state, self.pass_left = State.HALF_OPEN, int(left * PASS_SHARE)
                self.trial += 1
                self._until_s = now_s + CALM_WINDOWS * self._tripped.short_s
        elif self.state is State.HALF_OPEN:
            if not self._calm(budget):
                self._open(now_s)
            elif now_s >= self._until_s:
                self.state, self._pauses = State.CLOSED, 0
        elif tripped is not None and tripped.state is State.OPEN:
            self._tripped = tripped
            self._open(now_s)
        elif tripped is not None:
            if self.state is State.CLOSED:
                self._tripped, self._since_s, self.state = tripped, now_s, State.DEGRADED
            elif now_s - self._since_s >= tripped.short_s:
                self.state = State.CHEAPER
        elif self.state is not State.CLOSED and self._calm(budget):
            self.state = State.CLOSED
        return self.state

    def alarm(self, now_s: float, budget: int) -> Tier | None:
        """The gravest tier both of whose windows burn too fast. A budget of nothing does not burn, it is gone."""
        floor = max(budget * FLOOR_SHARE, REQUESTS_FLOOR * max(self._largest), 1)
        found = None
        for tier, burn in zip(self._tiers, self._burns, strict=True):
            burn.pass_time(now_s)
            if budget <= 0 or burn.long <= floor:
                continue
            slow = min(burn.long / tier.long_s, burn.short / tier.short_s)
            if slow * self._period_s > tier.rate * budget and (found is None or tier.state is State.OPEN):
                found = tier
        return found

    def rate(self, budget: int) -> float:
        """How fast the budget burnt in the short window of the last alarm; 1 is just to its period's end."""
        return self._short().short * self._period_s / (self._tripped.short_s * budget) if budget else 0.0

    def blamed(self, now_s: float) -> list[str]:
        """The leaves each of which spent most of what burns now."""
        found = []
        for number, burn in enumerate(self._burns):
            burn.pass_time(now_s)
            for leaf, burns in self._leaves.items():
                burns[number].pass_time(now_s)
                if burns[number].short > burn.short * BLAME_SHARE and burns[number].long > burn.long * BLAME_SHARE:
                    found.append(leaf)
        return list(dict.fromkeys(found))

    def strike(self, leaf: str, now_s: float) -> None:
        """A leaf's own breaker has opened: what was spent through it is nobody else's fire."""
        for burn, struck in zip(self._burns, self._leaves.pop(leaf, ()), strict=False):
            burn.strike(struck, now_s)

    def trip(self, now_s: float) -> None:
        """Open now, whatever burns."""
        self._tripped = next((tier for tier in self._tiers if tier.state is State.OPEN), self._tiers[0])
        self._open(now_s)

    def reset(self) -> None:
        """Close now, and forget what was spent."""
        self._burns, self._largest, self._pauses = self._anew(), (0, 0), 0
        self._leaves.clear()
        self.state, self.pass_left = State.CLOSED, 0

    def take(self, money: int) -> int:
        """How much of what a request wants it may hold while half-open; then the pass is so much smaller."""
        taken = min(money, self.pass_left) if self.state is State.HALF_OPEN else 0
        self.pass_left -= taken
        return taken

    def give_back(self, money: int, trial: int) -> None:
        """Some of what was held under a pass was not spent; of a pass that is over nothing comes back."""
        if self.state is State.HALF_OPEN and trial == self.trial:
            self.pass_left += money

    def retry_after_s(self, now_s: float) -> float:
        """When a request that was refused may be tried again."""
        return max(0.0, self._until_s - now_s)

    def idle(self, now_s: float) -> bool:
        """Whether there is nothing to remember of it."""
        return self.state is State.CLOSED and now_s - self._turned_s > 2 * self.kept_s

    def _anew(self) -> tuple[Burn, ...]:
        return tuple(Burn(tier) for tier in self._tiers)

    def _leaf(self, leaf: str, now_s: float) -> tuple[Burn, ...]:
        burns = self._leaves.get(leaf)
        if burns is None:
            if len(self._leaves) >= LEAVES_MAX:
                self._forget(now_s)
            burns = self._leaves[leaf] = self._anew()
        return burns

    def _forget(self, now_s: float) -> None:
        """Let go of leaves that spent nothing lately; if there are none, of the one known longest."""
        for burns in self._leaves.values():
            for burn in burns:
                burn.pass_time(now_s)
        longest = next(iter(self._leaves))
        kept = {leaf: burns for leaf, burns in self._leaves.items() if any(burn.long for burn in burns)}
        if len(kept) >= LEAVES_MAX:
            del kept[longest]
        self._leaves = kept

    def _short(self) -> Burn:
        """What the tier that tripped last sees."""
        return self._burns[self._tiers.index(self._tripped)]

    def _calm(self, budget: int) -> bool:
        return self.rate(budget) < self._tripped.rate / 2

    def _open(self, now_s: float) -> None:
        pause_s = PAUSE_WINDOWS * self._tripped.short_s * 2 ** min(self._pauses, PAUSES_MAX)
        self.state, self.pass_left, self._until_s = State.OPEN, 0, now_s + pause_s
        self._pauses += 1
