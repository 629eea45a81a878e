"""`holdfast` without one of its guards, in place of the real one: SCENARIO serve ...

As a program of its own, since what is taken out is in the gateway's process.
"""

import sys

from gateway.books.ledger import sqlite
from gateway.books.ledger.settlement import Settlement
from gateway.cli import main


def no_recovery() -> None:
    """What a gateway that was killed left held stays as it is."""
    sqlite.charge_leftovers = lambda *_: {}


def no_second_try() -> None:
    """What cannot be charged at once is not charged later."""
    Settlement._try_later = lambda *_: None  # type: ignore[method-assign]


WITHOUT = {"gateway-kill": no_recovery, "disk-full": no_second_try}

if __name__ == "__main__":
    WITHOUT[sys.argv.pop(1)]()
    main()
