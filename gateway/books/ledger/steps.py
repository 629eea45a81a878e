"""The steps of a ledger, each decided on the account's arithmetic and then written to a shelf.

One text for all engines: an engine brings a shelf and makes a step atomic.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from gateway.books.ledger.contract import NOTHING, About, Cell, Charged, Correction, Grant, Lines, More, Place, place
from gateway.books.ledger.orders import digest_of, same
from guards.budget import UNLIMITED, Account, Limit, Line
from guards.claim import MONEY, Cover, Load, Part, charges, hoped_for, lacking, lease, shares, worded
from guards.money import Price, Tokens
from guards.refusal import Reason, Refused

T_co = TypeVar("T_co", covariant=True)

CORRECTION = "correction-"  # begins the names of what was charged, or given back, by an operator


class Held(NamedTuple):
    """One request's hold: what it holds of which accounts. lines: the limits that it is under."""

    cells: tuple[Cell, ...]
    cover: Cover
    lines: Lines


class Shelf(Protocol):
    """Where accounts and holds lie. Plain reads and writes; a step around them makes them atomic."""

    def cell(self, place: Place) -> Cell: ...
    def write(self, cell: Cell, account: Account) -> None: ...
    def write_all(self, cells: tuple[Cell, ...], accounts: Iterable[Account]) -> None:
        """Write an account for each cell; none is twice among them."""

    def hold(self, request_id: str) -> Held | None: ...
    def keep_hold(self, request_id: str, held: Held) -> None: ...
    def drop_hold(self, request_id: str) -> None: ...
    def tell(self, charged: Charged) -> None:
        """Keep what a request was charged until the journal has it."""

    def corrected(self, name: str) -> str | None:
        """The digest of the order that was made under a name; "" where it is not known; None where there was none."""

    def corrections(self) -> int:
        """How many corrections were ever made."""

    def keep_corrected(self, name: str, digest: str) -> None: ...
    def accounts(self) -> Iterable[tuple[Place, Account]]: ...
    def holds(self) -> Iterable[tuple[str, Held]]: ...


class Step(Protocol[T_co]):
    """One atomic change or question."""

    def apply(self, shelf: Shelf, now_s: float) -> T_co:
        """Take the step at `now_s` (unix seconds); a `Refused` is an answer, and what came before it stays written."""


class Open(NamedTuple):
    """See `Ledger.open`."""

    request_id: str
    lines: Lines
    price: Price | None
    want: Load
    least: Load
    alone: Load | None = None

    def apply(self, shelf: Shelf, now_s: float) -> Grant:
        assert self.lines
        assert self.least.output > 0
        if shelf.hold(self.request_id) is not None:
            raise ValueError(f"request {self.request_id} already holds")
        lines, want, payable = self.lines, self.want, self.least.output
        cells, units = lines.cells(shelf, now_s), lines.units
        # Where all limits have `least` free, and that is what is wanted, there is nothing to be found out.
        taken = self._taken(cells, self.least, want) if payable >= want.output and self.alone is None else None
        if taken is None:
            parts = [
                Part(unit, under(cell.account, limit))
                for unit, limit, cell in zip(units, lines.amounts, cells, strict=True)
            ]
            self._refuse(shelf, cells, parts, now_s)
            want = Load(want.input, lease(parts, want, self.price))
            payable = lease(parts, Load(want.input, UNLIMITED), self.price, ever=True)
            taken = self._taken(cells, want, want)
            assert taken is not None
        amounts, after = taken
        shelf.write_all(cells, after)
        cover = Cover(units, tuple(amounts), self.price, lines.telling)
        shelf.keep_hold(self.request_id, Held(cells, cover, lines))
        return Grant(cells, cover, want.output, payable)

    def _taken(self, cells: Sequence[Cell], least: Load, want: Load) -> tuple[list[int], list[Account]] | None:
        """What each limit holds for a load, and how its account stands then; None where one has not `least` free."""
        needs = shares(least, self.price)
        wants = needs if want == least else shares(want, self.price)
        after = []
        for unit, limit, cell in zip(self.lines.units, self.lines.amounts, cells, strict=True):
            account = cell.account
            if account is None or account.limit != limit:
                account = under(account, limit)
            most, spent, held = account
            used, wanted = spent + held, wants[unit]
            if used + needs[unit] > most:
                return None
            assert 0 <= wanted <= most - used
            after.append(made(Account, (most, spent, held + wanted)))
        return [wants[unit] for unit in self.lines.units], after

    def _refuse(self, shelf: Shelf, cells: Sequence[Cell], parts: list[Part], now_s: float) -> None:
        """Raises Refused where some limit has not `least` free, nor is `alone` enough."""
        lacks = lacking(parts, self.least, self.price, ever=False)
        if self.alone is not None and not hoped_for(parts, self.least, self.price):
            lacks = lacking(parts, self.alone, self.price, ever=False)
        if lacks is None:
            return
        for cell, part in zip(cells, parts, strict=True):
            if cell.account is not None and cell.account.limit != part.account.limit:
                shelf.write(cell, part.account)  # a lowered limit binds the top-ups of older holds at once
        raise self.refusal(parts, lacks, now_s)

    def refusal(self, parts: list[Part], lacks: int, now_s: float) -> Refused:
        """Name the limit that can never pay it, else the one that cannot now."""
        needed = self.alone or self.least
        never = lacking(parts, needed, self.price, ever=True)
        number = lacks if never is None else never
        (scope, limit), account = self.lines[number], parts[number].account
        of = f"of {worded(limit.unit, account.limit)} are left of the budget of {scope} ({budget_period(limit, now_s)})"
        left = f"{worded(limit.unit, account.payable)} {of}"
        if never is not None:
            needs = worded(limit.unit, shares(needed, self.price)[limit.unit])
            return Refused(Reason.BUDGET, f"budget exceeded: {left}, and this request needs {needs}")
        free = worded(limit.unit, account.free)
        detail = f"budget held: {left}, but only {free} are not held by requests that are running"
        return Refused(Reason.HELD, detail, retry_after_s=1.0)


class Extend(NamedTuple):
    """See `Ledger.extend`."""

    request_id: str
    want: Load
    least: int

    def apply(self, shelf: Shelf, now_s: float) -> More:
        held = shelf.hold(self.request_id)
        if held is None:
            return More(None)
        units, amounts, price, telling = held.cover
        parts = [Part(unit, owner(cell), amount) for cell, unit, amount in zip(held.cells, units, amounts, strict=True)]
        output = lease(parts, self.want, price)
        if output < self.least:
            return More(None, hoped_for(parts, Load(self.want.input, self.least), price))
        needs = shares(Load(self.want.input, output), price)
        for cell, part in zip(held.cells, parts, strict=True):
            shelf.write(cell, part.account.hold(needs[part.unit] - part.held))
        cover = Cover(units, tuple([needs[unit] for unit in units]), price, telling)
        shelf.keep_hold(self.request_id, held._replace(cover=cover))
        return More(cover)


class Settle(NamedTuple):
    """See `Ledger.settle`."""

    request_id: str
    used: Tokens
    about: About = NOTHING

    def apply(self, shelf: Shelf, now_s: float) -> Charged | None:
        held = shelf.hold(self.request_id)
        if held is None:
            return None
        cells, (units, amounts, price, _), _ = held
        due = charges(self.used, price)
        after, due_of = [], []
        for cell, unit, amount in zip(cells, units, amounts, strict=True):
            limit, spent, all_held = owner(cell)
            owed = due[unit]
            assert 0 <= owed <= amount <= all_held
            after.append(made(Account, (limit, spent + owed, all_held - amount)))
            due_of.append((cell.place, owed))
        shelf.write_all(cells, after)  # once all of them are right
        shelf.drop_hold(self.request_id)
        charged = Charged(self.request_id, due_of, self.used, self.about, due.get(MONEY))
        if any(self.used):
            shelf.tell(charged)
        return charged


class Relimit(NamedTuple):
    """See `Ledger.relimit`."""

    line: Line

    def apply(self, shelf: Shelf, now_s: float) -> bool:
        cell = shelf.cell(place(*self.line, now_s))
        if cell.account is None:
            return False
        shelf.write(cell, under(cell.account, self.line.limit.within(cell.place.window)))
        return True


class Correct(NamedTuple):
    """See `Ledger.correct`."""

    name: str
    corrections: Sequence[Correction]

    def apply(self, shelf: Shelf, now_s: float) -> list[Charged] | None:
        if same(shelf.corrected(self.name), self.corrections, self.name):
            return None
        done = [
            Charged(f"{CORRECTION}{self.name}/{number}", self._charged(shelf, one), about=one.about)
            for number, one in enumerate(self.corrections)
        ]
        shelf.keep_corrected(self.name, digest_of(self.corrections))
        for charged in done:
            shelf.tell(charged)
        return done

    def _charged(self, shelf: Shelf, one: Correction) -> list[tuple[Place, int]]:
        charges = []
        for at, amount in one.charges:
            cell = shelf.cell(at)
            account = cell.account
            if account is None:
                continue  # nobody spent of it, or it was pruned
            due = -account.spent if amount is None else max(amount, -account.spent)
            if due:
                shelf.write(cell, account.correct(due))
                charges.append((at, due))
        return charges


class Balance(NamedTuple):
    """See `Ledger.balance`."""

    scope: str
    limit: Limit

    def apply(self, shelf: Shelf, now_s: float) -> Account:
        at = place(self.scope, self.limit, now_s)
        return under(shelf.cell(at).account, self.limit.within(at.window))


class Audit(NamedTuple):
    """See `Ledger.audit`."""

    def apply(self, shelf: Shelf, now_s: float) -> list[str]:
        held: Counter[Place] = Counter()
        for _, one in shelf.holds():
            for cell, amount in zip(one.cells, one.cover.amounts, strict=True):
                held[cell.place] += amount
        violations = []
        for at, account in shelf.accounts():
            holds = held.pop(at, 0)
            if account.held != holds:
                violations.append(f"{' '.join(at)}: held {account.held}, its holds sum to {holds}")
            if account.held < 0 or account.spent < 0 or account.held + account.spent + account.free != account.limit:
                violations.append(f"{' '.join(at)}: held + spent + free is not the limit: {account}")
        return violations + [f"{' '.join(at)}: {amount} held, no account" for at, amount in held.items()]


made = tuple.__new__  # what a NamedTuple's own does, twice as fast: five accounts of a request change twice


def under(account: Account | None, limit: int) -> Account:
    """An account under the limit that holds now; an empty one where there is none yet."""
    if account is None:
        return Account(limit)
    return account if account.limit == limit else Account(limit, account.spent, account.held)


def owner(cell: Cell) -> Account:
    """Read an account of a hold; it exists, for it was written in the same step."""
    assert cell.account is not None
    return cell.account


def budget_period(limit: Limit, now_s: float) -> str:
    """Name the limit's period and when it starts afresh, for humans."""
    resets_at = limit.window.resets_at(now_s)
    return f"per {limit.window}, resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}" if resets_at else "in total, never resets"
