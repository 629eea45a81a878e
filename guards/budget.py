"""Token budgets: the arithmetic of an account, and the meter of one request. Pure.

An account is one key's budget in one window. Its invariant, after every step:

    held + spent + free = limit,    held, spent, free >= 0

A request *holds* tokens before it is dispatched, *tops up* in leases while it streams, and is
*settled* once at what was delivered. Reserving first is what makes the bound hard: checking first
and recording afterwards overspent by up to 264 % in the measurements behind this design.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import lru_cache
from typing import NamedTuple

UNLIMITED = 1 << 62  # tokens: more than any account will ever see, and exact in SQLite's 64 bits


class Window(StrEnum):
    """How long a budget lasts before it starts afresh (UTC calendar windows)."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"

    def id_at(self, unix_s: float) -> str:
        """Name the window that holds this moment; part of the account's identity.

        With the name in the identity nothing has to be reset, so nothing can be reset twice.
        """
        return "total" if self is Window.TOTAL else _id_in_minute(self, int(unix_s // 60))

    def resets_at(self, unix_s: float) -> datetime | None:
        """Say when the window that holds this moment ends and the next begins; None for a total, which never does."""
        if self is Window.TOTAL:
            return None
        minute = datetime.fromtimestamp(unix_s, UTC).replace(second=0, microsecond=0)
        if self is Window.MINUTE:
            return minute + timedelta(minutes=1)
        hour = minute.replace(minute=0)
        if self is Window.HOUR:
            return hour + timedelta(hours=1)
        day = hour.replace(hour=0)
        if self is Window.DAY:
            return day + timedelta(days=1)
        return (day.replace(day=1) + timedelta(days=31)).replace(day=1)


@lru_cache(maxsize=8)  # asked for every hold, and the same for a minute
def _id_in_minute(window: Window, unix_minute: int) -> str:
    pattern = {"minute": "%Y-%m-%dT%H:%M", "hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
    return datetime.fromtimestamp(unix_minute * 60, UTC).strftime(pattern[window.value])


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget: so many tokens, input and output together, per window."""

    tokens: int
    window: Window = Window.TOTAL


class Account(NamedTuple):
    """One budget in one window, in tokens."""

    limit: int
    spent: int = 0
    held: int = 0

    @property
    def free(self) -> int:
        """What a new hold may take. Never below zero, also after a limit was lowered."""
        return max(0, self.limit - self.spent - self.held)

    @property
    def payable(self) -> int:
        """What one request could cost at most, were every other hold given back unused."""
        return max(0, self.limit - self.spent)

    def lease(self, want: int, least: int = 1) -> int:
        """Say how many tokens a request gets: `want` or what is free; 0 if `least` are not free.

        `least` may exceed `want`: «hold a little, but only if all of it could be paid».
        """
        free = self.free
        return min(want, free) if free >= least else 0

    def hold(self, tokens: int) -> "Account":
        """Take `tokens` out of what is free."""
        assert 0 <= tokens <= self.free
        return Account(self.limit, self.spent, self.held + tokens)

    def settle(self, leased: int, spent: int) -> "Account":
        """Give a lease back and charge what was spent of it."""
        assert 0 <= spent <= leased <= self.held
        return Account(self.limit, self.spent + spent, self.held - leased)


class Verdict(Enum):
    """What the meter says to tokens that are about to be delivered."""

    GO = "deliver"
    TOP_UP = "deliver, and ask for another lease"
    WAIT = "not covered yet: a lease is being asked for"
    CUT = "not covered, and there is no more"


class Meter:
    """Counts one request's tokens against what it has leased; decides, never waits.

    leased: tokens that the ledger has committed to this request.
    spent: tokens counted so far; never above `leased`.
    low_tokens: with this many left, another lease is asked for.
    """

    __slots__ = ("asking", "dry", "leased", "low_tokens", "spent")

    def __init__(self, leased: int, low_tokens: int = 64) -> None:
        self.leased = leased
        self.spent = 0
        self.low_tokens = low_tokens
        self.asking = False
        self.dry = False

    @property
    def room(self) -> int:
        """Tokens that may still be delivered under the present lease."""
        return self.leased - self.spent

    def spend(self, tokens: int) -> Verdict:
        """Count tokens that are about to be delivered, or say why they may not be.

        GO and TOP_UP have counted them. WAIT and CUT have not; after a CUT, `room` tokens may still go.
        After TOP_UP and WAIT the caller asks for a lease and answers with `granted`.
        """
        room = self.leased - self.spent
        if tokens <= room:
            self.spent += tokens
            if room - tokens <= self.low_tokens and not (self.asking or self.dry):
                self.asking = True
                return Verdict.TOP_UP
            return Verdict.GO
        if self.dry:
            return Verdict.CUT
        self.asking = True
        return Verdict.WAIT

    def give_back(self, tokens: int) -> None:
        """Take back tokens that were counted and then not delivered."""
        assert 0 <= tokens <= self.spent
        self.spent -= tokens

    def granted(self, tokens: int) -> None:
        """Take in the answer to a top-up; zero means that there will be no more."""
        self.asking = False
        self.leased += tokens
        self.dry = tokens == 0
