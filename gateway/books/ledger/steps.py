"""The steps of a ledger, each decided on the account's arithmetic and then written to a shelf.

One text for all engines: an engine brings a shelf and makes a step atomic.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

from gateway.books.ledger.contract import Grant
from guards.budget import UNLIMITED, Account, Limit
from guards.refusal import Reason, Refused

T_co = TypeVar("T_co", covariant=True)


class Held(NamedTuple):
    """One request's hold: `leased` tokens of one account, since `opened_at` (unix seconds)."""

    key_id: str
    window: str
    leased: int
    opened_at: float


class Shelf(Protocol):
    """Where accounts and holds lie. Plain reads and writes; a step around them makes them atomic."""

    def account(self, key_id: str, window: str) -> Account | None: ...
    def keep_account(self, key_id: str, window: str, account: Account) -> None: ...
    def hold(self, request_id: str) -> Held | None: ...
    def keep_hold(self, request_id: str, held: Held) -> None: ...
    def drop_hold(self, request_id: str) -> None: ...
    def accounts(self) -> Iterable[tuple[str, str, Account]]: ...
    def holds(self) -> Iterable[tuple[str, Held]]: ...


class Step(Protocol[T_co]):
    """One atomic change or question."""

    def apply(self, shelf: Shelf, now_s: float) -> T_co:
        """Take the step at `now_s` (unix seconds); a `Refused` is an answer, and what came before it stays written."""


class Open(NamedTuple):
    """See `Ledger.open`."""

    request_id: str
    key_id: str
    limit: Limit
    want: int
    least: int

    def apply(self, shelf: Shelf, now_s: float) -> Grant:
        assert self.want > 0
        assert self.least > 0
        if shelf.hold(self.request_id) is not None:
            raise ValueError(f"request {self.request_id} already holds tokens")
        window = self.limit.window.id_at(now_s)
        account = current(shelf, self.key_id, window, self.limit)
        leased = account.lease(self.want, self.least)
        # Also kept when nothing was leased: a lowered limit binds the top-ups of older holds at once.
        shelf.keep_account(self.key_id, window, account.hold(leased))
        if leased == 0:
            raise self._refusal(account, now_s)
        shelf.keep_hold(self.request_id, Held(self.key_id, window, leased, now_s))
        return Grant(leased, account.payable, window)

    def _refusal(self, account: Account, now_s: float) -> Refused:
        left = f"{account.payable} of {account.limit} tokens are left ({budget_period(self.limit, now_s)})"
        if account.payable < self.least:
            return Refused(Reason.BUDGET, f"budget exceeded: {left}, and this request needs {self.least}")
        detail = f"budget held: {left}, but only {account.free} are not held by requests that are running"
        return Refused(Reason.HELD, detail, retry_after_s=1.0)


class Extend(NamedTuple):
    """See `Ledger.extend`."""

    request_id: str
    tokens: int

    def apply(self, shelf: Shelf, now_s: float) -> int:
        assert self.tokens > 0
        held = shelf.hold(self.request_id)
        if held is None:
            return 0
        account = owner(shelf, held)
        granted = account.lease(self.tokens)
        if granted:
            shelf.keep_account(held.key_id, held.window, account.hold(granted))
            shelf.keep_hold(self.request_id, held._replace(leased=held.leased + granted))
        return granted


class Others(NamedTuple):
    """See `Ledger.others`."""

    request_id: str

    def apply(self, shelf: Shelf, now_s: float) -> int:
        held = shelf.hold(self.request_id)
        return 0 if held is None else owner(shelf, held).held - held.leased


class Settle(NamedTuple):
    """See `Ledger.settle`."""

    request_id: str
    spent: int

    def apply(self, shelf: Shelf, now_s: float) -> bool:
        held = shelf.hold(self.request_id)
        if held is None:
            return False
        shelf.keep_account(held.key_id, held.window, owner(shelf, held).settle(held.leased, self.spent))
        shelf.drop_hold(self.request_id)
        return True


class Balance(NamedTuple):
    """See `Ledger.balance`."""

    key_id: str
    limit: Limit

    def apply(self, shelf: Shelf, now_s: float) -> Account:
        return current(shelf, self.key_id, self.limit.window.id_at(now_s), self.limit)


class Audit(NamedTuple):
    """See `Ledger.audit`."""

    def apply(self, shelf: Shelf, now_s: float) -> list[str]:
        leased: Counter[tuple[str, str]] = Counter()
        for _, held in shelf.holds():
            leased[held.key_id, held.window] += held.leased
        violations = []
        for key_id, window, account in shelf.accounts():
            holds = leased.pop((key_id, window), 0)
            if account.held != holds:
                violations.append(f"{key_id} {window}: held {account.held}, its holds sum to {holds}")
            if account.held < 0 or account.spent < 0 or account.held + account.spent + account.free != account.limit:
                violations.append(f"{key_id} {window}: held + spent + free is not the limit: {account}")
        return violations + [
            f"{key_id} {window}: {tokens} held, no account" for (key_id, window), tokens in leased.items()
        ]


def limit_or_unlimited(limit: Limit | None) -> Limit:
    """Give a key without a budget one that cannot be reached: its spending is recorded the same way."""
    return Limit(UNLIMITED) if limit is None else limit


def current(shelf: Shelf, key_id: str, window: str, limit: Limit) -> Account:
    """Read an account under the limit that holds now; an empty one where there is none yet."""
    account = shelf.account(key_id, window)
    return Account(limit.tokens, account.spent, account.held) if account else Account(limit.tokens)


def owner(shelf: Shelf, held: Held) -> Account:
    """Read the account of a hold; it exists, for it was written in the same step."""
    account = shelf.account(held.key_id, held.window)
    assert account is not None
    return account


def budget_period(limit: Limit, now_s: float) -> str:
    """Name the limit's period and when it starts afresh, for humans."""
    resets_at = limit.window.resets_at(now_s)
    return f"per {limit.window}, resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}" if resets_at else "in total, never resets"
