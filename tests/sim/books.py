"""The real ledger on real SQL, in memory: only its thread and its disk are simulated. And a journal that is a list."""

import sqlite3
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from gateway.books.ledger import tables
from gateway.books.ledger.contract import Place
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.ledger.steps import Audit, Held
from gateway.books.ledger.tables import BATCH, KEEP, SCHEMA, Tables, Told
from gateway.books.ledger.writer import Ticket, Writer
from guards.budget import Account
from tests.sim.loop import SimLoop

BATCH_MAX, STEPS_MAX = 256, 10_000
EPOCH_S = 1_800_000_000.0  # what virtual time counts from, as unix seconds

NOWHERE: Any = "memory"
NO_THREADS: Any = SimpleNamespace(Thread=lambda **said: SimpleNamespace(start=lambda: None))

OnCommit = Callable[[list[Ticket], list[Any]], None]


class Disk(sqlite3.Connection):
    """A database that can fail. It outlives the gateway's process.

    broken: at the first statement of a transaction, or only at its commit; None while all is well.
    """

    broken: str | None = None

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == KEEP and self.broken == "commit":
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *values)

    def check(self) -> None:
        """Stands where LedgerFile is."""
        if self.broken == "file":
            raise FileNotFoundError("the ledger's file is gone")

    def wipe(self) -> None:
        """A fresh disk."""
        self.broken = None
        if self.in_transaction:
            self.execute("ROLLBACK")
        self.execute("DELETE FROM accounts")
        self.execute("DELETE FROM outbox")
        self.execute("DELETE FROM corrected")

    def recover(self, now_s: float) -> dict[Place, int]:
        """What the ledger does with what a process that died had held."""
        return tables.charge_leftovers(self, NOWHERE, now_s)

    def outbox(self) -> list[Told]:
        """What it may have to tell the journal."""
        return tables.read_outbox(self, NOWHERE)


def disk() -> Disk:
    """A database in memory, with the ledger's tables."""
    made = sqlite3.connect(":memory:", isolation_level=None, factory=Disk)
    made.executescript(SCHEMA + BATCH)
    return made


class Queue:
    """Stands where the writer's inbox is. on_put: told of each step that was left."""

    def __init__(self, on_put: Callable[[], None]) -> None:
        self._on_put = on_put
        self.tickets: list[Ticket] = []

    def put(self, ticket: Ticket, *, always: bool = False) -> bool:
        self.tickets.append(ticket)
        self._on_put()
        return True


class SimWriter(Writer):
    """The real transactions, taken by the loop instead of a thread.

    on_commit: told of each batch that was committed, with its answers. dead: the process is gone.
    """

    forget_batches = 2  # worlds are short

    def __init__(self, disk: Disk, loop: SimLoop, commit_s: Callable[[], float], on_commit: OnCommit) -> None:
        file: Any = disk
        with patch("gateway.books.ledger.writer.threading", NO_THREADS):
            outbox = disk.outbox()
            last = outbox[-1].batch if outbox else 0
            super().__init__(disk, file, lambda: EPOCH_S + loop.time(), STEPS_MAX, BATCH_MAX, last)
        self._loop, self._commit_s, self._on_commit = loop, commit_s, on_commit
        self._disk = Tables(disk)  # what is committed, whatever the writer thinks
        self._queue = Queue(self._next)
        self._inbox: Any = self._queue
        self._busy = self.dead = False

    def audit(self) -> list[str]:
        """What breaks an invariant."""
        return Audit().apply(self._overlay, self._clock())

    def accounts(self) -> Iterable[tuple[Place, Account]]:
        """Every account, as committed."""
        return self._disk.accounts()

    def holds(self) -> list[tuple[str, Held]]:
        """Every hold, as the writer remembers it between two batches."""
        return list(self._overlay.holds())

    def _next(self) -> None:
        if self._queue.tickets and not (self._busy or self.dead):
            self._busy = True
            self._loop.later(self._commit_s(), self._turn)

    def _turn(self) -> None:
        """One transaction, and then its answers on their way."""
        if self.dead:
            return
        tickets = self._queue.tickets
        batch, self._queue.tickets = tickets[:BATCH_MAX], tickets[BATCH_MAX:]
        commits = self.commits
        answers = self._commit(batch)
        if self.commits > commits:
            self._on_commit(batch, answers)
        self._loop.later(self._commit_s() / 4, self._answer, batch, answers)

    def _answer(self, batch: list[Ticket], answers: list[Any]) -> None:
        self._busy = False
        if not self.dead:
            self._hand_over(batch, answers)
            self._next()


class SimLedger(SqliteLedger):
    """The real ledger over a simulated writer."""

    def __init__(self, writer: SimWriter, outbox: list[Told]) -> None:
        self._writer: Any = writer
        self._closed = False
        self.recovered = {}
        self.outbox = outbox


class Facts:
    """A journal: told of each fact, in order. What was not flushed yet is gone with the process.

    flush_s: how long a fact waits for that; on_fact: told of what is on disk. dead: the process is gone.
    """

    healthy = True

    def __init__(
        self, loop: SimLoop, flush_s: Callable[[], float], on_fact: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._loop, self._flush_s, self._on_fact = loop, flush_s, on_fact
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self.appended = self.kept = 0
        self.dead = False

    def append(self, kind: str, about: dict[str, Any], fields: dict[str, Any]) -> None:
        self.appended += 1
        if not self._waiting:
            self._loop.later(self._flush_s(), self.flush)
        self._waiting.append((kind, about | fields))

    def flush(self) -> None:
        """Have all that waits on disk."""
        if self.dead:
            return
        waiting, self._waiting = self._waiting, []
        for kind, fact in waiting:
            self._on_fact(kind, fact)
        self.kept += len(waiting)
