"""A gateway that dies by SIGKILL at a chosen point of its own work, so that tests need not hit it by luck.

    python -m tests.dying extend:before:3 serve --config holdfast.yaml

The point is STEP:WHEN:NTH. STEP: open, extend or settle (the kind of step that a transaction has), or journal.
WHEN: `before` the commit (for the journal: with the last line half written), `after` it (before anybody hears of it),
or `during` it: with a checkpoint after each commit, killed by another thread within a few hundred microseconds.
"""

import os
import random
import signal
import sqlite3
import sys
import threading
import time
from typing import Any

from gateway.books import journal_file
from gateway.books.ledger.tables import KEEP
from gateway.books.ledger.writer import Ticket, Writer

POINTS = [f"{step}:{when}" for step in ("open", "extend", "settle") for when in ("before", "during", "after")]
POINTS += ["journal:before", "journal:after"]
DURING_S_MAX = 0.0008
TORN_BYTES = 7  # of the last line


def die() -> None:
    """End this process here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Says when the nth time has come."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def due(self) -> bool:
        self._left -= 1
        return self._left == 0


class Mortal:
    """A connection that does not survive one of its commits."""

    def __init__(self, db: sqlite3.Connection, when: str) -> None:
        self._db, self._when = db, when
        self.last = False

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement != KEEP or not self.last:
            return self._db.execute(statement, *values)
        if self._when == "before":
            die()
        if self._when == "during":
            threading.Thread(target=lambda: (time.sleep(random.uniform(0, DURING_S_MAX)), die())).start()
        done = self._db.execute(statement, *values)
        if self._when == "after":
            die()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def in_ledger(step: str, when: str, countdown: Countdown) -> None:
    """Die at the commit of a transaction that has such a step."""
    commit = Writer._commit

    def mortal_commit(self: Writer, batch: list[Ticket]) -> list[Any]:
        if not isinstance(self._db, Mortal):
            if when == "during":
                self._db.execute("PRAGMA wal_autocheckpoint = 1")
            self._db = Mortal(self._db, when)  # type: ignore[assignment]
        if any(type(ticket.step).__name__.lower() == step for ticket in batch):
            self._db.last = countdown.due() or self._db.last  # a batch may turn out to change nothing
        return commit(self, batch)

    Writer._commit = mortal_commit  # type: ignore[method-assign]


def in_journal(when: str, countdown: Countdown) -> None:
    """Die with half a batch in the file, or with all of it there and not flushed."""
    write_all = journal_file.write_all

    def mortal_write(descriptor: int, data: bytes) -> None:
        last = countdown.due()
        if last and when == "before":
            os.write(descriptor, data[:-TORN_BYTES])
            die()
        write_all(descriptor, data)
        if last:
            die()

    journal_file.write_all = mortal_write


def main() -> None:
    """Arm what the first argument says, then be `holdfast` with the others."""
    from gateway.cli import main as holdfast

    step, when, nth = sys.argv.pop(1).split(":")
    if step == "journal":
        in_journal(when, Countdown(int(nth)))
    else:
        in_ledger(step, when, Countdown(int(nth)))
    holdfast()


if __name__ == "__main__":
    main()
