"""Who a gateway is to the vault, and under which tags its accounts are: what outlives the process beside the ledger."""

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.books.ledger.contract import Correction, Place
from gateway.books.ledger.tables import explained
from gateway.books.vault.contract import Gateway
from guards.budget import Window

FILE = "rights.sqlite3"
NAME_BYTES = 8
NOT_KNOWN = -1.0  # as_of of a limit that is not known: the vault keeps the one it has
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


class Register:
    """In `<data>/rights.sqlite3`. name: of the gateway, made once; epoch: of this start, higher than all before.

    begun: the vault has heard what the ledger had before; until then that is of a gateway that shared with nobody.
    tags: those under which the vault has given rights, or was told of any.
    Used from one thread at a time. Raises Refused (BOOKS), naming the ledger's file, where it cannot be used.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
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
        return Gateway(self.name, self.epoch, self._exchanges)

    def begin(self) -> None:
        """The vault has heard what the ledger had before."""
        with explained(self._data):
            self._db.execute("UPDATE gateway SET begun = 1")
        self.begun = True

    def entries(self) -> list[Entry]:
        """All accounts that the vault was told of, or was about to be."""
        with explained(self._data):
            rows = self._db.execute('SELECT scope, unit, window, tag, "limit", as_of FROM accounts').fetchall()
        return [Entry(Place(*row[:3]), *row[3:]) for row in rows]

    def note(self, entries: Iterable[Entry]) -> None:
        """Remember accounts, before the vault hears of them."""
        rows = [(*one.place, one.tag, one.limit, one.as_of) for one in entries]
        with explained(self._data), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)", rows)

    def know(self, tag: str) -> None:
        """The vault has accounts under a tag from now on; should it have none later, it has lost them."""
        with explained(self._data):
            self._db.execute("INSERT OR IGNORE INTO tags VALUES (?)", (tag,))
        self.tags.add(tag)

    def forget(self, places: Iterable[Place], tag: str | None = None) -> None:
        """The vault knows all of these that is to be known, and has all rights of them back. tag: where no more are."""
        with explained(self._data), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("DELETE FROM accounts WHERE scope = ? AND unit = ? AND window = ?", places)
            self._db.execute("DELETE FROM tags WHERE tag = ?", (tag,))
        self.tags.discard(tag or "")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def told_of(corrections: Sequence[Correction], tag_of: Callable[[str], str | None], now_s: float) -> list[Entry]:
    """Of which accounts the vault is told after corrections: not of windows that are over, which nobody can spend of.

    tag_of: as `LeasedLedger.begin` takes it.
    """
    present = {window.id_at(now_s) for window in Window}
    places = {at: None for one in corrections for at, _ in one.charges if at.window in present}
    return [Entry(at, tag, 0, NOT_KNOWN) for at in places if (tag := tag_of(at.scope)) is not None]
