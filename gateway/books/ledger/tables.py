"""The ledger's SQLite file: its accounts, its recovery, and its lock.

A request's share of what an account holds is in its process's memory alone: if that dies, all of it is charged.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from guards.budget import UNLIMITED, Account
from guards.refusal import Reason, Refused

BUSY_S_MAX = 1.0  # how long a transaction waits for a lock that a stranger has on the file

FORMAT = 2  # of the tables; 1 had a row for each hold too
SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    key_id TEXT NOT NULL, window TEXT NOT NULL, limit_tokens INTEGER NOT NULL,
    spent INTEGER NOT NULL CHECK (spent >= 0), held INTEGER NOT NULL CHECK (held >= 0),
    PRIMARY KEY (key_id, window)
) WITHOUT ROWID;
DROP TABLE IF EXISTS holds;
"""
# What a batch of steps came to, in one statement and so in one transaction: each run of a statement lets go of the
# interpreter's lock, and waits to have it back. JSON: a list of accounts, with the fields of `Account` in their order.
KEEP = """
INSERT INTO accounts (key_id, window, limit_tokens, spent, held)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?) WHERE true
    ON CONFLICT (key_id, window) DO UPDATE
    SET limit_tokens = excluded.limit_tokens, spent = excluded.spent, held = excluded.held
"""


class LedgerInUse(Exception):
    """Another gateway works on the same data directory."""

    def __init__(self, data: Path) -> None:
        super().__init__(f"the ledger in {data} is in use by another gateway; stop that one or choose another --data")


class KeyBalance(NamedTuple):
    """One account, for display. Tokens; `limit` is None for a key without a budget."""

    key_id: str
    window: str
    limit: int | None
    spent: int
    held: int


class Tables:
    """The ledger's accounts, to be read; one thread at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def account(self, key_id: str, window: str) -> Account | None:
        query = "SELECT limit_tokens, spent, held FROM accounts WHERE key_id = ? AND window = ?"
        row = self.db.execute(query, (key_id, window)).fetchone()
        return Account(*row) if row else None

    def accounts(self) -> Iterable[tuple[str, str, Account]]:
        rows = self.db.execute("SELECT key_id, window, limit_tokens, spent, held FROM accounts").fetchall()
        return [(key_id, window, Account(*tokens)) for key_id, window, *tokens in rows]


def lock(data: Path) -> int:
    """Take the data directory for this process, until the returned file descriptor is closed.

    Recovery charges every hold it finds, so a second gateway would charge the live ones of the first.
    Raises LedgerInUse.
    """
    data.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data / "ledger.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LedgerInUse(data) from None
    return descriptor


class LedgerFile:
    """The file that a connection has open, and whether it still is the one in its directory.

    SQLite goes on writing to a file that was removed, and what it commits there is gone with the process.
    """

    def __init__(self, data: Path) -> None:
        path = os.fspath(ledger_file(data))
        self._inodes = [(one, os.stat(one).st_ino) for one in (path, f"{path}-wal")]

    def check(self) -> None:
        """Raises FileNotFoundError where the file, or the log beside it, was removed or replaced."""
        for path, inode in self._inodes:
            if os.stat(path).st_ino != inode:
                raise FileNotFoundError(f"{path} was replaced")


def connect(data: Path) -> sqlite3.Connection:
    """Open the ledger's file for the one writer, with its tables; commits are on disk when they return.

    Raises Refused (BOOKS), naming the file, where it is damaged or cannot be opened.
    """
    with explained(data):
        # Opened by one thread and handed over to another, never used by two at a time.
        db = sqlite3.connect(ledger_file(data), timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            if db.execute("PRAGMA user_version").fetchone()[0] > FORMAT:
                raise sqlite3.DatabaseError("made by a newer holdfast")
            db.executescript(f"{SCHEMA} PRAGMA user_version = {FORMAT};")
        except sqlite3.Error:
            db.close()
            raise
    return db


def charge_leftovers(db: sqlite3.Connection, data: Path) -> int:
    """Charge all that a process that died had held: it may have been delivered. Return how many tokens that is.

    It reads every account, so that damage shows now and not in mid-stream.
    Raises Refused (BOOKS), naming the file, where it cannot be written.
    """
    with explained(data):
        db.execute("BEGIN IMMEDIATE")
        charged = int(db.execute("SELECT total(held) FROM accounts").fetchone()[0])
        db.execute("UPDATE accounts SET spent = spent + held, held = 0 WHERE held > 0")
        db.execute("COMMIT")
    return charged


@contextmanager
def explained(data: Path) -> Iterator[None]:
    """Turn SQLite's errors into a refusal that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise Refused(Reason.BOOKS, f"the ledger {ledger_file(data)} cannot be used: {error}") from None


def read_balances(data: Path) -> list[KeyBalance]:
    """List all accounts in a data directory, also while a gateway runs on it; reads only.

    Raises Refused (BOOKS), naming the file, where it is damaged.
    """
    if not ledger_file(data).exists():
        return []
    address = f"{ledger_file(data).absolute().as_uri()}?mode=ro"
    with explained(data), closing(sqlite3.connect(address, uri=True, timeout=BUSY_S_MAX)) as db:
        rows = Tables(db).accounts()
    return [
        KeyBalance(key, window, None if a.limit == UNLIMITED else a.limit, a.spent, a.held) for key, window, a in rows
    ]


def ledger_file(data: Path) -> Path:
    return data / "ledger.sqlite3"
