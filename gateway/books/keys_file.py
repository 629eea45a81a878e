"""keys.db: its tables, how it is opened, and what is written to it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from guards.budget import Limit, Unit, Window
from guards.refusal import Reason, Refused

BUSY_MS = 2000  # to write: another process commits a key in milliseconds; beyond this the books are stuck
SCHEMA = 3  # 2 knew no top-ups, no orders and no times of limits; 1 knew keys only
KEPT_S = 62 * 86_400.0  # top-ups of windows that are over, and orders: so long is one of the same name known again
TOP_UPS_MAX, ORDERS_MAX = 100_000, 100
# Every row has the number of the change that wrote it, so that only what changed is read again. Times of limits and of
# top-ups grow with these numbers, whatever the clock does: the vault of shared budgets goes by the latest.
_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, user TEXT NOT NULL, org TEXT, team TEXT,
    created_at REAL NOT NULL, revoked_at REAL, change INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS limits (
    scope TEXT, unit TEXT, window TEXT, amount INTEGER, change INTEGER NOT NULL, at REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, unit, window)
) STRICT;
CREATE TABLE IF NOT EXISTS top_ups (
    name TEXT PRIMARY KEY, at REAL NOT NULL, scope TEXT NOT NULL, unit TEXT NOT NULL, window TEXT NOT NULL,
    window_id TEXT NOT NULL, amount INTEGER NOT NULL, change INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS orders (
    name TEXT PRIMARY KEY, at REAL NOT NULL, said TEXT NOT NULL, change INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS changes (number INTEGER NOT NULL, at REAL NOT NULL DEFAULT 0) STRICT;
INSERT INTO changes SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM changes);
CREATE INDEX IF NOT EXISTS keys_by_change ON keys (change);
CREATE INDEX IF NOT EXISTS limits_by_change ON limits (change);
CREATE INDEX IF NOT EXISTS top_ups_by_change ON top_ups (change);
CREATE INDEX IF NOT EXISTS orders_by_change ON orders (change);
"""
_TAKE_OVER_1 = f"""
ALTER TABLE keys RENAME TO old_keys;
{_TABLES}
INSERT INTO keys SELECT key_id, digest, user, org, NULL, created_at, revoked_at, 0 FROM old_keys;
INSERT INTO limits SELECT 'key:' || key_id, 'tokens', window, tokens, 0, 0 FROM old_keys WHERE tokens IS NOT NULL;
DROP TABLE old_keys;
"""
_TAKE_OVER_2 = f"""
ALTER TABLE limits ADD COLUMN at REAL NOT NULL DEFAULT 0;
ALTER TABLE changes ADD COLUMN at REAL NOT NULL DEFAULT 0;
{_TABLES}
"""
_MADE_OF = {0: _TABLES, 1: _TAKE_OVER_1, 2: _TAKE_OVER_2}  # by the schema that was found
LATER_S = 0.001  # than the change before, at least

Statement = tuple[str, dict[str, object]]  # SQL, and its values but for the number and the time of the change


def change_begun(db: sqlite3.Connection, now_s: float) -> dict[str, object]:
    """Number a change; the values that its statements have in common. In a transaction."""
    later = f"UPDATE changes SET number = number + 1, at = max(?, at + {LATER_S}) RETURNING number, at"
    number, at = db.execute(later, (now_s,)).fetchone()
    return {"change": number, "at": at}


def limit_kept(at: str, limit: Limit) -> Statement:
    """The statement that keeps a limit, and its values."""
    text = (
        "INSERT INTO limits VALUES (:scope, :unit, :window, :amount, :change, :at) ON CONFLICT (scope, unit, window)"
        " DO UPDATE SET amount = excluded.amount, change = excluded.change, at = excluded.at"
    )
    return text, {"scope": at, "unit": limit.unit.value, "window": limit.window.value, "amount": limit.amount}


class TopUp(NamedTuple):
    """More for one window of a limit, once. name: whoever says it again means the same one; at: unix seconds."""

    name: str
    at: float
    scope: str
    unit: Unit
    window: Window
    window_id: str
    amount: int


def top_up_kept(one: TopUp) -> tuple[Statement, ...]:
    """The statements that keep a top-up, unless its name is known, and let go of old ones."""
    text = "INSERT OR IGNORE INTO top_ups VALUES (:name, :at, :scope, :unit, :window, :window_id, :amount, :change)"
    kept = one._asdict() | {"unit": one.unit.value, "window": one.window.value}
    old = "DELETE FROM top_ups WHERE at < :old AND window <> 'total'"
    return (text, kept), (old, {"old": one.at - KEPT_S})


def top_up_named(db: sqlite3.Connection, name: str) -> TopUp | None:
    """Read a top-up."""
    query = "SELECT name, at, scope, unit, window, window_id, amount FROM top_ups WHERE name = ?"
    row = db.execute(query, (name,)).fetchone()
    if row is None:
        return None
    known, at, scope, unit, window, window_id, amount = row
    return TopUp(known, at, scope, Unit(unit), Window(window), window_id, amount)


def order_kept(name: str, said: str, now_s: float) -> tuple[Statement, ...]:
    """The statements that keep an order, unless its name is known, and let go of old ones."""
    values = {"name": name, "said": said, "at": now_s, "old": now_s - KEPT_S}
    return ("INSERT OR IGNORE INTO orders VALUES (:name, :at, :said, :change)", values), (
        "DELETE FROM orders WHERE at < :old",
        values,
    )


def order_named(db: sqlite3.Connection, name: str) -> str | None:
    """Read what an order says."""
    row = db.execute("SELECT said FROM orders WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def full(db: sqlite3.Connection, table: str, most: int) -> bool:
    """Whether a table has as many rows as it may."""
    return bool(db.execute(f"SELECT count(*) >= {most} FROM {table}").fetchone()[0])


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A block that is committed as a whole, or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def opened(path: Path) -> sqlite3.Connection:
    """Open keys.db, made with its directory where missing, for its owner alone. Raises sqlite3.Error, OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite's own files take this mode over. A file that is there is not opened: closing it would let go of all locks
    # that this process has on it, and what another one commits then never shows.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")  # a revocation that was confirmed outlives a power cut
    with transaction(db):  # another process may be about to do the same
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA:
            raise sqlite3.DatabaseError("made by a newer holdfast")
        if found < SCHEMA:
            for statement in _MADE_OF[found].split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA}")
    return db


def locked(error: Exception) -> bool:
    """Whether another process is at work on the file, rather than the file being at fault."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def unavailable(error: Exception, path: Path | None = None) -> Refused:
    """SQLite's words name tables, never values. path: for those who run the gateway, not for its clients."""
    store = f"the key store {path}" if path else "the key store"
    return Refused(Reason.BOOKS, f"{store} cannot be used: {error}", retry_after_s=1.0)
