"""The ledger's SQLite file: its accounts, its recovery, and its lock.

A request's share of what an account holds is in its process's memory alone: if that dies, all of it is charged.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.books.directories import directories
from gateway.books.ledger.contract import Charged, Correction, Place
from gateway.books.ledger.orders import same
from guards.budget import UNLIMITED, Account
from guards.refusal import Reason, Refused

RECOVERY, PRUNED = "recovery-", "pruned-"  # begin the names of what was charged, or forgotten, for no request
# What one fact tells at most, so that it is within the journal's `FACT_BYTES_MAX` whatever the names in it are.
CHARGES_MAX, CHARGES_FEW, SCOPES_CHARS_MAX = 32, 5, 2048

DAY_S = 86_400.0
WINDOW_S_MAX = 62 * DAY_S  # untouched for so long, an account of a window is one of the past: a month has 31 days
CORRECTED_S_MAX = 3 * WINDOW_S_MAX  # so long a correction is not made again; its order is forgotten before that
NAMED_S_MAX = 30 * DAY_S  # of a session or an agent, whose names clients make up: one that comes back begins anew
LOCK_LOOK_S = 0.05  # while another process has the data directory
BUSY_S_MAX = 1.0  # how long a transaction waits for a lock that a stranger has on the file

FORMAT = 3  # of the tables; 1 had a row for each hold too, 2 knew keys and tokens only
SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    scope TEXT NOT NULL, unit TEXT NOT NULL, window TEXT NOT NULL, "limit" INTEGER NOT NULL,
    spent INTEGER NOT NULL CHECK (spent >= 0), held INTEGER NOT NULL CHECK (held >= 0),
    touched REAL NOT NULL, PRIMARY KEY (scope, unit, window)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS corrected (name TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (name TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS corrections (number INTEGER NOT NULL);
INSERT INTO corrections SELECT count(*) FROM corrected WHERE NOT EXISTS (SELECT 1 FROM corrections);
CREATE TABLE IF NOT EXISTS outbox (batch INTEGER PRIMARY KEY, at REAL NOT NULL, told TEXT NOT NULL);
"""
# What a batch of steps came to, in one statement and so in one transaction: each run of a statement lets go of the
# interpreter's lock, and waits to have it back. accounts: JSON, a list with the fields of `Place` and `Account`.
# told: what was charged to whom, as the journal will tell it, kept until it has; corrected: names of corrections and
# digests of what was ordered; journaled: the last batch that the journal has. Digests have a table of their own: an
# older Holdfast goes on with this file, and what it corrects has none.
BATCH = """
CREATE TEMP VIEW batch AS
    SELECT NULL AS number, NULL AS at, NULL AS accounts, NULL AS told, NULL AS corrected, NULL AS journaled;
CREATE TEMP TRIGGER batch_kept INSTEAD OF INSERT ON batch BEGIN
    INSERT INTO accounts
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
            json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'), NEW.at
        FROM json_each(NEW.accounts) WHERE true
        ON CONFLICT (scope, unit, window) DO UPDATE
        SET "limit" = excluded."limit", spent = excluded.spent, held = excluded.held, touched = excluded.touched;
    INSERT INTO outbox SELECT NEW.number, NEW.at, NEW.told WHERE NEW.told IS NOT NULL;
    INSERT INTO corrected SELECT json_extract(value, '$[0]'), NEW.at FROM json_each(NEW.corrected);
    INSERT OR REPLACE INTO orders
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(NEW.corrected);
    UPDATE corrections SET number = number + json_array_length(NEW.corrected) WHERE NEW.corrected IS NOT NULL;
    DELETE FROM outbox WHERE batch <= NEW.journaled;
END;
"""
KEEP = "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?)"
COLUMNS = 'scope, unit, window, "limit", spent, held'


class LedgerInUse(Exception):
    """Another gateway works on the same data directory."""

    def __init__(self, data: Path) -> None:
        super().__init__(f"the ledger in {data} is in use by another gateway; stop that one or choose another --data")


class Balance(NamedTuple):
    """One account, for display. `limit` is None where it only records."""

    scope: str
    unit: str
    window: str
    limit: int | None
    spent: int
    held: int


class Told(NamedTuple):
    """What one batch charged, as the journal must tell it; at: unix seconds."""

    batch: int
    at: float
    charged: list[Charged]


class Tables:
    """The ledger's accounts, to be read; one thread at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def account(self, place: Place) -> Account | None:
        query = 'SELECT "limit", spent, held FROM accounts WHERE scope = ? AND unit = ? AND window = ?'
        row = self.db.execute(query, place).fetchone()
        return Account(*row) if row else None

    def corrected(self, name: str) -> str | None:
        """See `Shelf.corrected`."""
        if not self._has("corrected"):  # a file of an older format, which is taken over by who writes to it
            return None
        if self.db.execute("SELECT 1 FROM corrected WHERE name = ?", (name,)).fetchone() is None:
            return None
        if not self._has("orders"):
            return ""  # an older Holdfast has it open
        row = self.db.execute("SELECT digest FROM orders WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def _has(self, table: str) -> bool:
        return self.db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None

    def corrections(self) -> int:
        """How many were ever made, those that are forgotten among them."""
        number: int = self.db.execute("SELECT number FROM corrections").fetchone()[0]
        return number

    def accounts(self) -> Iterable[tuple[Place, Account]]:
        rows = self.db.execute(f"SELECT {COLUMNS} FROM accounts").fetchall()
        return [(Place(*row[:3]), Account(*row[3:])) for row in rows]

    def accounts_of(self, scope: str) -> Iterable[tuple[Place, Account]]:
        rows = self.db.execute(f"SELECT {COLUMNS} FROM accounts WHERE scope = ?", (scope,)).fetchall()
        return [(Place(*row[:3]), Account(*row[3:])) for row in rows]


def in_facts(charges: list[tuple[Place, int]]) -> list[tuple[list[tuple[Place, int]], bool]]:
    """Cut into what one fact each can tell; one, as a rule. And whether more of them are to come."""
    if 0 < len(charges) <= CHARGES_FEW:  # whatever their names are
        return [(charges, False)]
    parts: list[list[tuple[Place, int]]] = [[]]
    chars = 0
    for charge in charges:
        chars += len(charge[0].scope)
        if parts[-1] and (chars > SCOPES_CHARS_MAX or len(parts[-1]) == CHARGES_MAX):
            parts.append([])
            chars = len(charge[0].scope)
        parts[-1].append(charge)
    return [(part, number < len(parts)) for number, part in enumerate(parts, 1) if part]


def lock(data: Path, within_s: float = 0.0) -> int:
    """Take the data directory for this process, until the returned file descriptor is closed.

    Recovery charges every hold it finds, so a second gateway would charge the live ones of the first.
    within_s: how long to wait for whoever has it; a command that corrects the books has it for a moment.
    Raises LedgerInUse.
    """
    data.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data / "ledger.lock", os.O_RDWR | os.O_CREAT, 0o600)
    ends_at = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends_at:
                os.close(descriptor)
                raise LedgerInUse(data) from None
            time.sleep(LOCK_LOOK_S)
        else:
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
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found > FORMAT:
                raise sqlite3.DatabaseError("made by a newer holdfast")
            if 0 < found < FORMAT:
                _take_over(db)
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT; {BATCH}")
        except sqlite3.Error:
            db.close()
            raise
    return db


def _take_over(db: sqlite3.Connection) -> None:
    """Make the accounts of an older format into those of this one, in one transaction; the journal has yet to hear."""
    db.executescript(
        "BEGIN IMMEDIATE; DROP TABLE IF EXISTS holds; ALTER TABLE accounts RENAME TO old; "
        + SCHEMA
        + """
        INSERT INTO accounts SELECT 'key:' || key_id, 'tokens', window, limit_tokens, spent, held, unixepoch() FROM old;
        DROP TABLE old;
        """
    )
    rows = db.execute("SELECT scope, unit, window, spent FROM accounts WHERE spent > 0").fetchall()
    _tell(db, RECOVERY, {Place(*at): spent for *at, spent in rows}, time.time())
    db.execute(f"PRAGMA user_version = {FORMAT}")
    db.execute("COMMIT")


def charge_leftovers(db: sqlite3.Connection, data: Path, now_s: float) -> dict[Place, int]:
    """Charge all that a process that died had held: it may have been delivered. Return how much, by account.

    It is told in the outbox, too. It reads every account, so that damage shows now and not in mid-stream.
    Raises Refused (BOOKS), naming the file, where it cannot be written.
    """
    with explained(data):
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute("SELECT scope, unit, window, held FROM accounts WHERE held > 0").fetchall()
        charged = {Place(*at): held for *at, held in rows}
        if charged:
            db.execute("UPDATE accounts SET spent = spent + held, held = 0 WHERE held > 0")
            _tell(db, RECOVERY, charged, now_s)
        db.execute("COMMIT")
    return charged


def prune(db: sqlite3.Connection, data: Path, now_s: float) -> int:
    """Let go of accounts that nobody will ask for again; return how many. The journal is told, so that it stays equal.

    Raises Refused (BOOKS), naming the file, where it cannot be written.
    """
    old = """
        held = 0 AND (
            (window <> 'total' AND touched < :now - :window)
            OR ((scope GLOB 'session:*' OR scope GLOB 'agent:*') AND touched < :now - :named)
        )
    """
    bounds = {"now": now_s, "window": WINDOW_S_MAX, "named": NAMED_S_MAX}
    with explained(data):
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(f"SELECT scope, unit, window, spent FROM accounts WHERE {old}", bounds).fetchall()
        if rows:
            db.execute(f"DELETE FROM accounts WHERE {old}", bounds)
            _tell(db, PRUNED, {Place(*at): -spent for *at, spent in rows if spent}, now_s)
        db.execute("DELETE FROM corrected WHERE at < ?", (now_s - CORRECTED_S_MAX,))
        db.execute("DELETE FROM orders WHERE name NOT IN (SELECT name FROM corrected)")
        db.execute("COMMIT")
    return len(rows)


def _tell(db: sqlite3.Connection, why: str, charged: dict[Place, int], now_s: float) -> None:
    """Put what no request was charged into the outbox."""
    if charged:
        number = db.execute("SELECT coalesce(max(batch), 0) + 1 FROM outbox").fetchone()[0]
        name = f"{why}{int(now_s * 1e6)}-{number}"  # by when, and by which: once for all
        told = msgspec.json.encode([Charged(name, list(charged.items()))]).decode()
        db.execute("INSERT INTO outbox VALUES (?, ?, ?)", (number, now_s, told))


def read_outbox(db: sqlite3.Connection, data: Path) -> list[Told]:
    """What was charged, and may not be in the journal yet; the oldest first. Raises Refused (BOOKS)."""
    with explained(data):
        rows = db.execute("SELECT batch, at, told FROM outbox ORDER BY batch").fetchall()
        return [Told(batch, at, msgspec.json.decode(told, type=list[Charged])) for batch, at, told in rows]


@contextmanager
def explained(data: Path) -> Iterator[None]:
    """Turn errors of the file and of what is in it into a refusal that names it."""
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError) as error:
        raise Refused(Reason.BOOKS, f"the ledger {ledger_file(data)} cannot be used: {error}") from None


def read_balances(data: Path, scopes: Iterable[str] | None = None) -> list[Balance]:
    """List accounts in a data directory, all or those of some scopes, also while a gateway runs on it; reads only.

    Where workers have books below it, an account is what all of them say of it, and has no limit: theirs are rights.
    Raises Refused (BOOKS), naming the file, where it is damaged.
    """
    workers, scopes = directories(data), None if scopes is None else list(scopes)
    if not workers:
        return _balances(data, scopes)
    sums: dict[Place, tuple[int, int]] = {}
    for one in (one for path in (data, *workers) for one in _balances(path, scopes)):
        spent, held = sums.get(at := Place(*one[:3]), (0, 0))
        sums[at] = spent + one.spent, held + one.held
    return [Balance(*at, None, spent, held) for at, (spent, held) in sorted(sums.items())]


def _balances(data: Path, scopes: Iterable[str] | None) -> list[Balance]:
    if not ledger_file(data).exists():
        return []
    with _looking(data) as db:
        tables = Tables(db)
        rows = tables.accounts() if scopes is None else [row for at in scopes for row in tables.accounts_of(at)]
    return [Balance(*at, None if one.limit == UNLIMITED else one.limit, one.spent, one.held) for at, one in rows]


def read_account(data: Path, at: Place) -> Account:
    """One account of the ledger in a data directory itself, also while a gateway runs on it. Raises Refused (BOOKS)."""
    with _looking(data) as db:
        return Tables(db).account(at) or Account(0)


def was_corrected(data: Path, name: str, corrections: Sequence[Correction]) -> bool:
    """Whether the ledger in a data directory has made these corrections; also while a gateway runs on it.

    Raises OtherOrder where it has made others by that name, Refused (BOOKS).
    """
    with _looking(data) as db:
        return same(Tables(db).corrected(name), corrections, name)


@contextmanager
def _looking(data: Path) -> Iterator[sqlite3.Connection]:
    address = f"{ledger_file(data).absolute().as_uri()}?mode=ro"
    with explained(data), closing(sqlite3.connect(address, uri=True, timeout=BUSY_S_MAX)) as db:
        yield db


def ledger_file(data: Path) -> Path:
    return data / "ledger.sqlite3"
