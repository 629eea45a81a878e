"""Keys and how their budgets stand, for people: what `holdfast keys list` prints."""

import sqlite3
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from gateway.books.keys import KeyRow
from gateway.books.tenants import RECORD
from guards.budget import UNLIMITED, Account, Limit, Unit
from guards.money import shown
from guards.refusal import Refused
from guards.scope import scope

COLUMNS = ("key id", "user", "team", "org", "budget", "spent", "held", "free", "window", "created", "state")
WIDTH = 200  # characters, where the output is no terminal: a table that is cut off helps no script
Balances = dict[tuple[str, str, str], tuple[int, int]]  # spent and held, by the account's scope, unit and window


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One limit in its current window, in its unit. amount, free: None without a limit. topped_up: of the amount, what
    was added for this window alone."""

    unit: str
    window: str
    amount: int | None
    spent: int
    held: int
    free: int | None
    topped_up: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, for JSON."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """Budget, spent, held, free and window, for people."""
        budget, free = ("unlimited" if value is None else self._shown(value) for value in (self.amount, self.free))
        if self.unit in (Unit.INPUT, Unit.OUTPUT):
            budget = f"{budget} {self.unit.split()[0]}"
        if self.topped_up:
            budget = f"{budget} (+{self._shown(self.topped_up)})"
        return budget, self._shown(self.spent), self._shown(self.held), free, self.window

    def _shown(self, value: int) -> str:
        return shown(value) if self.unit == Unit.MONEY else f"{value:,}"


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One key. Times in Unix seconds."""

    key_id: str
    user: str
    team: str | None
    org: str | None
    budgets: list[BudgetLine]
    created_at: float | None
    revoked_at: float | None
    state: str

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """What each of COLUMNS shows, in a row for each budget; who it is only in the first."""
        made = datetime.fromtimestamp(self.created_at, UTC).strftime("%Y-%m-%d %H:%M") if self.created_at else "-"
        who, state = (self.key_id, self.user, self.team or "-", self.org or "-"), (made, self.state)
        first, *rest = self.budgets
        return [(*who, *first.cells(), *state), *(("",) * len(who) + one.cells() + ("", "") for one in rest)]


def lines(rows: list[KeyRow], data: Path, now_s: float | None = None) -> list[KeyLine]:
    """Join keys with what the ledger in `data` knows of them; a ledger that is not there yet knows nothing."""
    now_s = time.time() if now_s is None else now_s
    return lines_of(rows, known(data), now_s)


def lines_of(rows: list[KeyRow], balances: Balances, now_s: float) -> list[KeyLine]:
    """The same, where what the ledger knows has been read."""
    return [_line(row, balances, now_s) for row in rows]


def show(lines: list[KeyLine], out: TextIO) -> None:
    """Draw a table. Names are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None)
    for line in lines:
        for row in line.rows():
            table.add_row(*(Text(cell) for cell in row))
    Console(file=out, width=None if out.isatty() else WIDTH).print(table)


def _line(row: KeyRow, balances: Balances, now_s: float) -> KeyLine:
    who = row.tenant
    at = scope("key", who.key_id)
    budgets = [budget(at, limit, balances, now_s) for limit in who.own or (RECORD,)]
    state = "revoked" if row.revoked_at is not None else "declared" if who.source == "config" else "active"
    return KeyLine(who.key_id, who.user, who.team, who.org, budgets, row.created_at, row.revoked_at, state)


def budget(at: str, limit: Limit, balances: Balances, now_s: float) -> BudgetLine:
    """Join a limit with what the ledger knows of it."""
    window_id = limit.window.id_at(now_s)
    spent, held = balances.get((at, limit.unit.value, window_id), (0, 0))
    unit, window, amount = limit.unit.value, limit.window.value, limit.within(window_id)
    if amount >= UNLIMITED:
        return BudgetLine(unit, window, None, spent, held, None)
    return BudgetLine(unit, window, amount, spent, held, Account(amount, spent, held).free, amount - limit.amount)


def known(data: Path) -> Balances:
    """For display: an unreadable ledger is shown as an empty one."""
    from gateway.books.ledger.tables import read_balances

    try:
        return {(row.scope, row.unit, row.window): (row.spent, row.held) for row in read_balances(data)}
    except (sqlite3.Error, Refused):
        return {}
