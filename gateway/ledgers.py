"""Which ledger a configuration means: one for a gateway alone, or one on rights leased of a vault that many share."""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog

from gateway.books.directories import JOURNAL
from gateway.books.journal import Journal
from gateway.books.keys import Keys
from gateway.books.ledger.contract import Lines
from gateway.books.ledger.gone import Gone
from gateway.books.ledger.leased import LeasedLedger
from gateway.books.ledger.one_off import OneOff
from gateway.books.ledger.register import Register
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.outbox import Outbox
from gateway.books.replay import facts
from gateway.books.vault.contract import Vault
from gateway.config_ledger import LedgerConfig

log = structlog.get_logger()

LOCK_S = 2.0  # for a command that corrects the books; whoever still has them then is another gateway


class Books(NamedTuple):
    """What a gateway writes of its requests. outbox: by which the journal tells what the ledger has charged."""

    journal: Journal
    ledger: SqliteLedger | LeasedLedger
    outbox: Outbox


@asynccontextmanager
async def open_books(data: Path, keys: Keys, kind: LedgerConfig, vault: Vault | None) -> AsyncIterator[Books]:
    """The books of a data directory.

    vault: of the budgets, where many gateways share them; then it has heard all that this directory had spent.
    Raises OSError where the journal is damaged, LedgerInUse, Refused.
    """
    async with AsyncExitStack() as stack:
        # The ledger first, with its lock: who has not got that must not touch the journal. It ends first, too.
        local = SqliteLedger(data, time.time, lock_s=LOCK_S)
        ledger: SqliteLedger | LeasedLedger = local
        try:
            journal = Journal(data / JOURNAL, time.time)
        except BaseException:
            await local.close()
            raise
        stack.callback(journal.close)
        stack.push_async_callback(local.close)
        outbox = join(local, journal, data / JOURNAL)
        if vault is not None:
            register = Register(data)
            gone = gone_of(kind, vault, register)
            one_off = OneOff(vault, register.name, register.tags) if kind.one_off else None
            ledger = LeasedLedger(local, register, vault, goes_on=going_on(kind), gone=gone, one_off=one_off)
            stack.push_async_callback(ledger.close)
            await ledger.begin(keys.tag_of)
        yield Books(journal, ledger, outbox)


def join(ledger: SqliteLedger, journal: Journal, path: Path) -> Outbox:
    """Have the journal tell all that the ledger has charged. Raises OSError where it is damaged: see docs."""
    outbox = Outbox(ledger, journal)
    try:
        told = outbox.begin(partial(facts, path))
    except ValueError as error:
        raise OSError(f"{error}; move it away, and a new one is begun") from None
    if told:
        log.warning("journal.caught_up", charges=told)
    ledger.on_batch(outbox.batch)
    return outbox


def gone_of(kind: LedgerConfig, vault: Vault, register: Register) -> Gone | None:
    """Who says that this gateway is there, and sees to others that are gone. In a file of one machine they are as many
    as its workers ever were."""
    if kind.url is None:
        return None
    return Gone(vault, register, kind.write_off_after, time.monotonic, random.Random())


def going_on(kind: LedgerConfig) -> Callable[[Lines], bool]:
    """Whose requests use up what their gateway has leased while the vault cannot be reached."""
    scopes = frozenset(kind.leased_scopes)
    if kind.when_down == "leased":
        return lambda lines: True
    return lambda lines: not scopes.isdisjoint(lines.scopes)
