"""`holdfast` without one of its guards, in place of the real one: SCENARIO serve ...

As a program of its own, since what is taken out is in the gateway's process.
"""

import sys

from gateway.books.journal import Journal
from gateway.books.ledger import sqlite
from gateway.cli import main


def no_recovery() -> None:
    """What a gateway that was killed left held stays as it is."""
    sqlite.charge_leftovers = lambda *_: {}


def no_patience() -> None:
    """What the journal cannot write at once is lost, as is what a gap would tell of it."""

    def keep(journal: Journal, batch: list[bytes]) -> None:
        journal._written(batch)

    Journal._keep = keep  # type: ignore[method-assign]


WITHOUT = {"gateway-kill": no_recovery, "disk-full": no_patience}

if __name__ == "__main__":
    WITHOUT[sys.argv.pop(1)]()
    main()
