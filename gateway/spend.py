"""What was spent, by whom: the journal added up, as a table with a bar for each row."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from gateway.books.replay import Fact
from guards.money import shown

COLUMNS = ("requests", "input", "cached", "output", "reasoning", "cost", "")
BY = ("org", "team", "user", "key", "session", "agent", "model", "ending")
BAR = 24  # characters of the longest
NOBODY = "-"
WIDTH = 200  # where the output is no terminal


@dataclass
class Spent:
    """What one of them used. Tokens; cost in micro-dollars, of the models that have a price."""

    name: str
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0

    def add(self, fact: Fact) -> None:
        """Take in what a request was charged."""
        self.requests += 1
        self.input_tokens += fact.prompt_tokens
        self.cached_tokens += fact.cached_tokens
        self.output_tokens += fact.completion_tokens
        self.reasoning_tokens += fact.reasoning_tokens
        self.cost += fact.cost or 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, for JSON."""
        return asdict(self)

    def cells(self, most: int) -> tuple[str, ...]:
        """What each of COLUMNS shows. most: what the longest bar stands for."""
        counts = self.requests, self.input_tokens, self.cached_tokens, self.output_tokens, self.reasoning_tokens
        size = self.cost or self.tokens
        bar = "█" * max(1, round(BAR * size / most)) if size and most else ""
        return *(f"{count:,}" for count in counts), shown(self.cost) if self.cost else NOBODY, bar


def added_up(facts: Iterable[Fact], by: str) -> tuple[list[Spent], bool]:
    """Sum up what requests used, the dearest first; and say whether more was charged, for what died unfinished.

    by: one of BY.
    """
    field = "key_id" if by == "key" else by
    found: dict[str, Spent] = {}
    recovered = False
    for fact in facts:
        recovered |= fact.kind == "ledger.recovered"
        if fact.kind in ("request.settled", "request.charged") and (fact.prompt_tokens or fact.completion_tokens):
            name = getattr(fact, field) or NOBODY
            found.setdefault(name, Spent(name)).add(fact)
    return sorted(found.values(), key=lambda one: (-one.cost, -one.tokens, one.name)), recovered


def show(rows: list[Spent], by: str, out: TextIO) -> None:
    """Draw them. Names are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(by, *COLUMNS, box=None)
    for column in table.columns[1:-1]:
        column.justify = "right"
    most = max((one.cost or one.tokens for one in rows), default=0)
    for one in rows:
        table.add_row(*(Text(cell) for cell in (one.name, *one.cells(most))))
    Console(file=out, width=None if out.isatty() else WIDTH).print(table)
