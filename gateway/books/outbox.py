"""The ledger and the journal, kept equal over any crash: the transactional outbox.

What a batch of the ledger charges is written beside it, in the same transaction. The journal tells it after that, and
when its flush is done the row goes. So the journal never has what the ledger has not, and what a crash kept from it is
still in the outbox at the next start.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from gateway.books.journal import Journal
from gateway.books.ledger.contract import Charged, Place
from gateway.books.ledger.steps import CORRECTION
from gateway.books.ledger.tables import PRUNED, RECOVERY, Told, in_facts
from gateway.books.replay import Fact
from guards.money import Tokens

CORRECTED = "ledger.corrected"
KINDS = {RECOVERY: "ledger.recovered", PRUNED: "ledger.pruned", CORRECTION: CORRECTED}  # of facts, by names' beginnings
SLACK_S = 300.0  # a clock that was set back; facts are looked for so much before they were due
WAITING_MAX = 4096  # batches; beyond it two are taken for one


class Settled(Protocol):
    """A ledger with an outbox."""

    outbox: list[Told]

    def journaled(self, batch: int) -> None: ...


class Outbox:
    """Tells the ledger which of its batches the journal has. `batch` is for `ledger.on_batch`."""

    def __init__(self, ledger: Settled, journal: Journal) -> None:
        self._ledger, self._journal = ledger, journal
        self._waiting: deque[tuple[int, int]] = deque()  # a batch, and how many facts were appended after it

    def begin(self, facts: Callable[[float], Iterable[Fact]]) -> int:
        """Have the journal tell what a crash kept from it, before any request; return how many charges those were.

        facts: gives those that the journal has, from about a time on (unix seconds).
        """
        left = self._ledger.outbox
        if not left:
            return 0
        mine = {one.request_id for told in left for one in told.charged}
        known: set[tuple[str, Place | None]] = set()
        for fact in facts(min(told.at for told in left) - SLACK_S):
            if fact.request_id in mine:
                known.update((fact.request_id, at) for at, _ in fact.charges)
                if fact.kind in ("request.settled", CORRECTED):
                    known.add((fact.request_id, None))
        missing = 0
        for one in (one for told in left for one in told.charged):
            due = [(at, amount) for at, amount in one.charges if (one.request_id, at) not in known]
            self.tell(one._replace(charges=due), anew=(one.request_id, None) not in known)
            missing += len(due)
        self.batch(left[-1].batch)
        return missing

    def tell(self, one: Charged, *, anew: bool = True) -> None:
        """As a request's own end does, but for what only its process knew. anew: nothing of it was told."""
        kind = next((KINDS[why] for why in KINDS if one.request_id.startswith(why)), "request.charged")
        fields: dict[str, Any] = tokens(one.used, one.cost) if anew and kind == "request.charged" else {}
        parts = in_facts(one.charges)
        if not parts and anew and kind == CORRECTED:
            parts = [([], False)]  # it says more than charges
        for part, more in parts:
            fields |= {"more": True} if more else {}
            self._journal.append(kind, {"request_id": one.request_id, **one.about}, {"charges": part, **fields})
            fields = {}

    def batch(self, number: int) -> None:
        """A batch was answered, and its facts appended."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.pop()
        self._waiting.append((number, self._journal.appended))
        kept, done = self._journal.kept, 0
        while self._waiting and self._waiting[0][1] <= kept:
            done, _ = self._waiting.popleft()
        if done:
            self._ledger.journaled(done)


def tokens(used: Tokens, cost: int | None) -> dict[str, int]:
    """What was used, as facts name it; of what is told seldom, only what there is."""
    facts = {"prompt_tokens": used.input, "completion_tokens": used.output}
    seldom = {"cached_tokens": used.cached, "reasoning_tokens": used.reasoning, "cost": cost}
    return facts | {name: count for name, count in seldom.items() if count}
