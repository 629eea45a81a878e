"""What was told already, and what a receiver has not heard yet: over restarts, in `<data>/alerts.sqlite3`."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from guards.refusal import Reason, Refused

log = structlog.get_logger()

ROWS_MAX = 100_000  # the oldest go first
PRUNE_EVERY = 1000  # alerts
UNSENT_MAX = 1000  # that are given to the receiver after a restart: the newest
UNSENT_S_MAX = 86_400.0  # what is older is no news
BUSY_S_MAX = 0.05  # the event loop waits for it
TABLE = """
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL, sent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS alerts_by_time ON alerts (at);
"""
PRUNE = "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts ORDER BY at DESC LIMIT -1 OFFSET ?)"


class Unsent(NamedTuple):
    """One alert that its receiver has not acknowledged."""

    alert_id: str
    body: bytes


class AlertBook:
    """Remembers alerts. One process at a time, as of the whole data directory; one thread.

    What a power cut takes of the last moments may be told twice, under the same id. While the file cannot be written,
    alerts are told and not remembered.

    clock: Unix seconds; heard: whether there is a receiver, so that what it has not heard is kept for it.
    Raises Refused (BOOKS), naming the file, where it cannot be opened.
    """

    def __init__(self, path: Path, clock: Callable[[], float], *, heard: bool) -> None:
        self._clock, self._heard = clock, heard
        self._kept = 0
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # no flush for each: the event loop waits for it
            self._db.executescript(TABLE)
            self._db.execute(PRUNE, (ROWS_MAX,))
        except sqlite3.Error as error:
            raise Refused(Reason.BOOKS, f"{path} cannot be used: {error}") from None

    def first(self, alert_id: str, body: bytes) -> bool:
        """Keep an alert; False where it is there already."""
        self._kept += 1
        if self._kept % PRUNE_EVERY == 0:
            self._run(PRUNE, (ROWS_MAX,))
        row = alert_id, self._clock(), body, not self._heard
        return self._run("INSERT OR IGNORE INTO alerts VALUES (?, ?, ?, ?)", row) != 0

    def sent(self, alert_id: str) -> None:
        """Its receiver has it, or never will."""
        self._run("UPDATE alerts SET sent = 1 WHERE id = ?", (alert_id,))

    def unsent(self) -> list[Unsent]:
        """Those whose receiver may not have heard of them, the oldest first."""
        query = "SELECT id, body FROM alerts WHERE sent = 0 AND at > ? ORDER BY at DESC LIMIT ?"
        rows = self._db.execute(query, (self._clock() - UNSENT_S_MAX, UNSENT_MAX))
        return [Unsent(*row) for row in rows.fetchall()][::-1]

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _run(self, statement: str, values: tuple[object, ...]) -> int:
        """Run a statement; how many rows it changed, below 0 where it could not be run."""
        try:
            return self._db.execute(statement, values).rowcount
        except sqlite3.Error as error:
            log.error("alerts.not_remembered", error=repr(error))
            return -1
