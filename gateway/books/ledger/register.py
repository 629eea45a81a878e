"""Who a gateway is to the vault, and under which tags its accounts are: what outlives the process beside the ledger."""

import asyncio
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from gateway.books.ledger.contract import Correction, Place
from gateway.books.ledger.tables import explained
from gateway.books.vault.contract import Gateway
from guards.budget import Window
from guards.refusal import Refused

log = structlog.get_logger()

FILE = "rights.sqlite3"
NAME_BYTES = 8
NOT_KNOWN = -1.0  # as_of of a limit that is not known: the vault keeps the one it has
BATCH_MAX = 64  # changes in one transaction
_TABLES = """
CREATE TABLE IF NOT EXISTS gateway (name TEXT NOT NULL, epoch INTEGER NOT NULL, begun INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (
    scope TEXT NOT NULL, unit TEXT NOT NULL, window TEXT NOT NULL, tag TEXT NOT NULL,
    "limit" INTEGER, as_of REAL NOT NULL,
    PRIMARY KEY (scope, unit, window)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (tag TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Entry(NamedTuple):
    """An account of which the vault is told. limit: the budget, None where it only records.

    as_of: see `guards.budget.Limit`, or NOT_KNOWN.
    """

    place: Place
    tag: str
    limit: int | None
    as_of: float


class Change(NamedTuple):
    """Rows for each of some statements, to be written together, and who waits for that."""

    writes: Sequence[tuple[str, list[tuple[Any, ...]]]]
    answer: asyncio.Future[None] | None = None


class Register:
    """In `<data>/rights.sqlite3`. name: of the gateway, made once; epoch: of this start, higher than all before.

    begun: the vault has heard what the ledger had before; until then that is of a gateway that shared with nobody.
    tags: those under which the vault has given rights, or was told of any.
    For use from one event loop. What many change at a time is written together, and is on disk when they are answered.
    Raises Refused (BOOKS), naming the ledger's file, where it cannot be used.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._waiting: list[Change] = []
        self._runner: asyncio.Task[None] | None = None
        self._healthy = True
        self._lock = threading.Lock()  # of the connection
        self._start = secrets.token_hex(NAME_BYTES)  # which a copy of these books has not, whatever epoch it is in
        self._exchanges = 0  # of all tags: one that was let go of and comes back goes on with higher numbers
        with explained(data):
            self._db = sqlite3.connect(data / FILE, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            if not self._db.execute("SELECT count(*) FROM gateway").fetchone()[0]:
                self._db.execute("INSERT INTO gateway VALUES (?, 0, 0)", (secrets.token_hex(NAME_BYTES),))
            row = self._db.execute("UPDATE gateway SET epoch = epoch + 1 RETURNING name, epoch, begun").fetchone()
            self.name: str = row[0]
            self.epoch: int = row[1]
            self.begun = bool(row[2])
            self.tags = {tag for (tag,) in self._db.execute("SELECT tag FROM tags")}

    def me(self) -> Gateway:
        """Who speaks in the next exchange."""
        self._exchanges += 1
        return Gateway(self.name, self.epoch, self._exchanges, self._start)

    async def begin(self) -> None:
        """The vault has heard what the ledger had before."""
        await self._write(("UPDATE gateway SET begun = 1", [()]))
        self.begun = True

    def entries(self) -> list[Entry]:
        """All accounts that the vault was told of, or was about to be."""
        with explained(self._data):
            rows = self._db.execute('SELECT scope, unit, window, tag, "limit", as_of FROM accounts').fetchall()
        return [Entry(Place(*row[:3]), *row[3:]) for row in rows]

    async def note(self, entries: Iterable[Entry]) -> None:
        """Remember accounts, before the vault hears of them."""
        rows = [(*one.place, one.tag, one.limit, one.as_of) for one in entries]
        await self._write(("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)", rows))

    def note_now(self, entries: Iterable[Entry]) -> None:
        """The same, done when it returns. It blocks, for the flush of a file."""
        rows = [(*one.place, one.tag, one.limit, one.as_of) for one in entries]
        change = Change((("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)", rows),))
        self._commit([change])

    async def know(self, tag: str) -> None:
        """The vault has accounts under a tag from now on; should it have none later, it has lost them."""
        await self._write(("INSERT OR IGNORE INTO tags VALUES (?)", [(tag,)]))
        self.tags.add(tag)

    async def forget(self, places: Iterable[Place], tag: str | None = None) -> None:
        """The vault knows all of these that is to be known, and has all rights of them back. tag: where no more are."""
        gone = ("DELETE FROM accounts WHERE scope = ? AND unit = ? AND window = ?", [tuple(at) for at in places])
        await self._write(gone, ("DELETE FROM tags WHERE tag = ?", [(tag,)]))
        self.tags.discard(tag or "")

    async def close(self) -> None:
        """Let go of the file, once all that waits is written."""
        if self._runner is not None:
            await self._runner
        self._db.close()

    async def _write(self, *writes: tuple[str, list[tuple[Any, ...]]]) -> None:
        """Put a change in the queue. A caller that is cancelled has still been heard."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(Change(writes, answer))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        await answer

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            why: Refused | None = None
            try:
                await asyncio.to_thread(self._commit, batch)
            except Refused as refused:
                why = refused
            if self._healthy and why is not None:  # one line for each time that it breaks, not for each try
                log.error("register.failed", error=why.detail)
            self._healthy = why is None
            for one in batch:
                if one.answer is None or one.answer.done():
                    continue
                if why is None:
                    one.answer.set_result(None)
                else:
                    one.answer.set_exception(why)

    def _commit(self, batch: Sequence[Change]) -> None:
        """Write changes in one transaction, from a thread."""
        with self._lock, explained(self._data), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for one in batch:
                for statement, rows in one.writes:
                    self._db.executemany(statement, rows)


def told_of(corrections: Sequence[Correction], tag_of: Callable[[str], str | None], now_s: float) -> list[Entry]:
    """Of which accounts the vault is told after corrections: not of windows that are over, which nobody can spend of.

    tag_of: as `LeasedLedger.begin` takes it.
    """
    present = {window.id_at(now_s) for window in Window}
    places = {at: None for one in corrections for at, _ in one.charges if at.window in present}
    return [Entry(at, tag, 0, NOT_KNOWN) for at in places if (tag := tag_of(at.scope)) is not None]
