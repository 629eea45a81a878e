"""What was spent, by whom and when: the journal added up, as a table with a bar for each row."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Self, TextIO

from gateway.books.replay import Fact
from gateway.books.repricing import Due, Spans
from guards.money import shown

COLUMNS = ("requests", "input", "cached", "output", "reasoning", "cost", "")
BY = ("org", "team", "user", "key", "session", "agent", "model", "ending", "day")
BAR = 24  # characters of the longest
NOBODY = "-"
AS_TOLD = Spans()
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

    def add(self, fact: Fact, cost: int | None) -> None:
        """Take in what a request was charged."""
        self.requests += 1
        self.input_tokens += fact.prompt_tokens
        self.cached_tokens += fact.cached_tokens
        self.output_tokens += fact.completion_tokens
        self.reasoning_tokens += fact.reasoning_tokens
        self.cost += cost or 0

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


class Sum:
    """What requests used, added up by whom, or also by when.

    by: one of BY. every_s: seconds that one sum is for; None for all time.
    recovered: whether more was charged, for what died unfinished.
    """

    def __init__(self, by: str, every_s: int | None = None) -> None:
        self.recovered = False
        self._found: dict[tuple[int, str], Spent] = {}
        self._field = "key_id" if by == "key" else by
        self._every_s = every_s

    def add(self, facts: Iterable[Fact], spans: Spans = AS_TOLD) -> Self:
        """Take in facts of a journal. spans: prices of it that were put right since."""
        found, field, every_s = self._found, self._field, self._every_s
        for fact in facts:
            if fact.kind in ("request.settled", "request.charged") and (fact.prompt_tokens or fact.completion_tokens):
                name = day(fact.at) if field == "day" else getattr(fact, field) or NOBODY
                at = 0 if every_s is None else int(fact.at // every_s) * every_s
                if (at, name) not in found:
                    found[at, name] = Spent(name)
                found[at, name].add(fact, spans.cost(fact) if spans else fact.cost)
            elif fact.kind == "ledger.recovered":
                self.recovered = True
        return self

    @property
    def rows(self) -> list[tuple[int, Spent]]:
        """When it begins (unix seconds; 0 for all time), and by whom, the dearest first; days in their order."""
        if self._field == "day":
            return sorted(((at, one) for (at, _), one in self._found.items()), key=lambda row: (row[0], row[1].name))
        rows = [(at, one) for (at, _), one in self._found.items()]
        return sorted(rows, key=lambda row: (row[0], -row[1].cost, -row[1].tokens, row[1].name))

    @property
    def over_time(self) -> dict[int, list[Spent]]:
        """The same, by when it begins (unix seconds), the earliest first."""
        times: dict[int, list[Spent]] = {}
        for at, one in self.rows:
            times.setdefault(at, []).append(one)
        return times


@lru_cache(maxsize=512)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86_400, UTC).strftime("%Y-%m-%d")


def day(unix_s: float) -> str:
    """The day of a moment (UTC)."""
    return _day(int(unix_s // 86_400))


def show_repricing(found: Due, out: TextIO) -> None:
    """Draw what new prices come to, by model and by account."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    models, accounts = Table("model", "requests", "was", "now", box=None), Table("account", "difference", box=None)
    for model, one in sorted(found.models.items()):
        models.add_row(*(Text(cell) for cell in (model, f"{one.requests:,}", shown(one.was), shown(one.now))))
    for at, amount in sorted(found.accounts.items()):
        accounts.add_row(Text(f"{at.scope} {at.window}"), Text(shown(amount)))
    console = Console(file=out, width=None if out.isatty() else WIDTH)
    console.print(models)
    if accounts.row_count:
        console.print(accounts)


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
