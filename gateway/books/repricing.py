"""Charges at another price: what each account would have been charged, and what it was.

Tokens are kept, so a wrong price can be put right. A `ledger.corrected` fact says what a model's price was from one
fact of the journal to another; the last one that covers a fact is the price it is charged at. So the same prices again
come to nothing, whoever asks, and over whatever span.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from gateway.books.ledger.contract import Correction, Place
from gateway.books.ledger.orders import REPRICED
from gateway.books.replay import CHUNK_BYTES, Fact, decoded
from guards.budget import Unit
from guards.money import Price, Tokens

SLACK_S = 300.0  # before a span begins: a charge that came late finds the tokens it is for
_MARK = b'"why":"repriced"'  # as facts are worded: what has it is read, all else of a journal is passed over
_FORGIVEN = ("ledger.corrected", "ledger.pruned")


class Span(NamedTuple):
    """A model's price from one fact to another, both included."""

    model: str
    price: Price
    first: int
    last: int


class Spans:
    """All that was priced anew so far. last: the number of the latest fact that says so; 0 where none does."""

    def __init__(self, told: Iterable[Fact] = ()) -> None:
        self._of: dict[str, list[Span]] = {}
        self.last = 0
        for fact in told:
            if fact.why == REPRICED and fact.model is not None and fact.price is not None:
                self._of.setdefault(fact.model, []).append(Span(fact.model, fact.price, fact.first, fact.last))
                self.last = max(self.last, fact.seq)

    def __bool__(self) -> bool:
        return bool(self._of)

    def price(self, fact: Fact) -> Price | None:
        """The price that a fact's tokens were charged at later; None where they are charged as it says itself."""
        for one in reversed(self._of.get(fact.model or "", ())):
            if one.first <= fact.seq <= one.last:
                return one.price
        return None

    def cost(self, fact: Fact) -> int | None:
        """What a request's tokens cost, in micro-dollars, by the last word."""
        price = self.price(fact)
        return fact.cost if price is None else price.of(tokens_of(fact))


def spans(path: Path, may_go_on: Callable[[], None] = lambda: None) -> Spans:
    """Find what a journal says was priced anew; quick, for nearly all of it is not decoded. Raises Damaged.

    may_go_on: called now and then; raises where it may not.
    """
    found = []
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return Spans()
    with file:
        rest = b""
        while chunk := file.read(CHUNK_BYTES):
            may_go_on()
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline and _MARK in whole:
                found += [decoded(path, line) for line in whole.split(b"\n") if _MARK in line]
    return Spans(found)


def tokens_of(fact: Fact) -> Tokens:
    """What a request was charged for; nothing where nothing of what it was sent was charged."""
    if fact.charged_tokens == 0:
        return Tokens()
    return Tokens(fact.prompt_tokens, fact.completion_tokens, fact.cached_tokens, fact.reasoning_tokens)


@dataclass
class ModelDue:
    """What comes of a model's new price. was, now: costs of its requests in micro-dollars; charges: by account."""

    price: Price
    requests: int = 0
    was: int = 0
    now: int = 0
    charges: Counter[Place] = field(default_factory=Counter)


@dataclass
class Due:
    """What comes of new prices, by model, between two facts of a journal. accounts: the sum of it, by account."""

    models: dict[str, ModelDue]
    first: int = 0
    last: int = 0

    @property
    def accounts(self) -> Counter[Place]:
        total: Counter[Place] = Counter()
        for one in self.models.values():
            total.update(one.charges)
        return Counter({at: amount for at, amount in total.items() if amount})

    def corrections(self) -> list[Correction]:
        """The same, for the ledger; one for each model, and none where nothing changes."""
        return [
            Correction(
                [(at, amount) for at, amount in one.charges.items() if amount],
                {"why": REPRICED, "model": model, "price": one.price, "first": self.first, "last": self.last},
            )
            for model, one in sorted(self.models.items())
            if one.was != one.now or any(one.charges.values())
        ]


def due(facts: Iterable[Fact], prices: Mapping[str, Price], known: Spans, since_s: float = 0.0) -> Due:
    """Compare what requests were charged, from the first fact of `since_s` (unix seconds) on, with what prices say.

    facts: from SLACK_S before that on. What was given back since (an account begun anew, or pruned) is not charged.
    """
    found = Due({})
    unfinished: dict[str, Tokens] = {}  # of requests that may have more charges in facts to come
    for fact in facts:
        found.first = found.first or (fact.seq if fact.at >= since_s else 0)
        found.last = fact.seq
        if fact.kind in _FORGIVEN and fact.why != REPRICED:
            for one in found.models.values():
                for at, _ in fact.charges:
                    one.charges.pop(at, None)
        price = prices.get(fact.model or "")
        if price is None or fact.kind not in ("request.settled", "request.charged"):
            continue
        begins = fact.request_id not in unfinished
        used = tokens_of(fact) if begins else unfinished[fact.request_id]
        if begins and (fact.more or not fact.charges):
            unfinished[fact.request_id] = used
        if found.first:
            _reprice(found.models.setdefault(fact.model or "", ModelDue(price)), fact, used, known.price(fact), begins)
    return found


def _reprice(model: ModelDue, fact: Fact, used: Tokens, before: Price | None, begins: bool) -> None:
    now = model.price.of(used)
    if begins and any(used):
        model.requests += 1
        model.was += (fact.cost or 0) if before is None else before.of(used)
        model.now += now
    for at, amount in fact.charges:
        if at.unit == Unit.MONEY:
            model.charges[at] += now - (amount if before is None else before.of(used))


def name_of(path: Path, known: Spans) -> str:
    """Name what is priced anew next: two that look at the same journal mean the same, and one of them is made."""
    with path.open("rb") as file:
        return f"reprice-{crc32(file.readline()):08x}-{known.last}"
