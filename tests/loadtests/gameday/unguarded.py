"""`holdfast` without one of its guards, in place of the real one: SCENARIO serve ...

As a program of its own, since what is taken out is in the gateway's process.
"""

import sys

from gateway.books.ledger import sqlite
from gateway.books.ledger.settlement import Settlement
from gateway.cli import main

WITHOUT = {
    # what a gateway that was killed left held stays as it is
    "gateway-kill": (sqlite, "charge_leftovers", lambda *_: {}),
    # what cannot be charged at once is not charged later
    "disk-full": (Settlement, "_try_later", lambda *_: None),
}

if __name__ == "__main__":
    setattr(*WITHOUT[sys.argv.pop(1)])
    main()
