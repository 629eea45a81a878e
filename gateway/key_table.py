"""Keys and their balances, for people: what `holdfast keys list` prints."""

import sqlite3
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from gateway.books.keys import KeyRow
from guards.budget import Account, Window

COLUMNS = ("key id", "user", "org", "budget", "spent", "held", "free", "window", "created", "state")
WIDTH = 200  # characters, where the output is no terminal: a table that is cut off helps no script


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One key in its current window. Tokens; None: no budget. Times in Unix seconds."""

    key_id: str
    user: str
    org: str | None
    tokens: int | None
    spent: int
    held: int
    free: int | None
    window: str
    created_at: float | None
    revoked_at: float | None
    state: str

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, for JSON."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """What each of COLUMNS shows."""
        budget, free = ("unlimited" if value is None else f"{value:,}" for value in (self.tokens, self.free))
        made = datetime.fromtimestamp(self.created_at, UTC).strftime("%Y-%m-%d %H:%M") if self.created_at else "-"
        spent, held = f"{self.spent:,}", f"{self.held:,}"
        return self.key_id, self.user, self.org or "-", budget, spent, held, free, self.window, made, self.state


def lines(rows: list[KeyRow], data: Path, now_s: float | None = None) -> list[KeyLine]:
    """Join keys with what the ledger in `data` knows of them; a ledger that is not there yet knows nothing."""
    now_s = time.time() if now_s is None else now_s
    balances = _balances(data)
    return [_line(row, balances, now_s) for row in rows]


def show(lines: list[KeyLine], out: TextIO) -> None:
    """Draw a table. Names are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line.cells()))
    Console(file=out, width=None if out.isatty() else WIDTH).print(table)


def _line(row: KeyRow, balances: dict[tuple[str, str], tuple[int, int]], now_s: float) -> KeyLine:
    tenant, limit = row.tenant, row.tenant.limit
    window = limit.window if limit else Window.TOTAL
    spent, held = balances.get((tenant.key_id, window.id_at(now_s)), (0, 0))
    free = Account(limit.tokens, spent, held).free if limit else None
    state = "revoked" if row.revoked_at is not None else "declared" if tenant.source == "config" else "active"
    tokens = limit.tokens if limit else None
    times = (row.created_at, row.revoked_at)
    return KeyLine(tenant.key_id, tenant.user, tenant.org, tokens, spent, held, free, window.value, *times, state)


def _balances(data: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """(spent, held) by key and window, for display: an unreadable ledger is shown as an empty one."""
    from gateway.books.ledger.tables import read_balances

    try:
        return {(row.key_id, row.window): (row.spent, row.held) for row in read_balances(data)}
    except sqlite3.Error:
        return {}
