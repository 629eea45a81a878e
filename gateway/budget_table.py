"""All limits and how they stand, for people: what `holdfast budgets list` prints."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from gateway.books.keys_file import TopUp
from gateway.books.tenants import Limits
from gateway.key_table import WIDTH, BudgetLine, budget, known
from guards.budget import Unit
from guards.claim import worded

COLUMNS = ("scope", "budget", "spent", "held", "free", "window", "used", "")
BAR = 20  # characters of a budget that is all spent


@dataclass(frozen=True, slots=True)
class ScopeLine:
    """One limit of one scope."""

    scope: str
    budget: BudgetLine

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, for JSON."""
        return {"scope": self.scope, **asdict(self.budget)}

    def cells(self) -> tuple[str, ...]:
        """What each of COLUMNS shows; a scope of which there are many has no account of its own."""
        if self.scope.startswith("each "):
            return self.scope, self.budget.cells()[0], "", "", "", self.budget.window, "", ""
        share = self.budget.spent / self.budget.amount if self.budget.amount else 0.0
        return self.scope, *self.budget.cells(), f"{share:.0%}", "█" * min(BAR, round(BAR * share))


def lines(limits: Limits, data: Path, now_s: float | None = None) -> list[ScopeLine]:
    """Join limits with what the ledger in `data` knows of them."""
    now_s = time.time() if now_s is None else now_s
    balances = known(data)
    return [ScopeLine(at, budget(at, limit, balances, now_s)) for at, found in limits.items() for limit in found]


def added(one: TopUp) -> dict[str, Any]:
    """A top-up, for JSON."""
    return {
        "id": one.name, "scope": one.scope, "unit": one.unit.value, "window": one.window.value,
        "window_id": one.window_id, "amount": one.amount, "at": one.at,
    }  # fmt: skip


def show_holds(told: dict[str, Any], out: TextIO) -> None:
    """Draw what runs, as the admin port tells it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("request", "key", "user", "model", "for", "input", "output", "leased", "holds", box=None)
    for one in told["holds"]:
        held = ", ".join(f"{part['scope']} {worded(Unit(part['unit']), part['held'])}" for part in one["held"])
        used, leased = one["used"], one["leased_tokens"]
        cells = one["request_id"], one["key_id"], one["user"], one["model"], f"{one['for_s']:.1f} s"
        table.add_row(*(Text(str(cell)) for cell in (*cells, used["input"], used["output"], leased, held)))
    console = Console(file=out, width=None if out.isatty() else WIDTH)
    console.print(table)
    console.print(f"{told['total']} running")


def show(lines: list[ScopeLine], out: TextIO) -> None:
    """Draw a table. Names are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line.cells()))
    Console(file=out, width=None if out.isatty() else WIDTH).print(table)
