"""Corrections of the books by an operator: an account begun anew, charges at another price; each of them once.

A correction has a name. The ledger remembers the names of those it made, in the transaction that makes them, so an
order may be given as often as one likes: to the gateway that runs, to a new one, or to none. With the name it remembers
what was ordered, so that another order under it is refused.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import msgspec

from gateway.books.directories import JOURNAL, directories
from gateway.books.journal import Journal
from gateway.books.keys import Keys
from gateway.books.ledger.contract import Charged, Correction, Ledger, Place
from gateway.books.ledger.orders import OtherOrder, digest_of
from gateway.books.ledger.register import FILE, Register, told_of
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.ledger.tables import LedgerInUse, ledger_file, read_account, was_corrected
from gateway.books.outbox import Outbox
from gateway.books.replay import facts

ACCOUNTS_MAX = 20_000  # that one order may correct: the journal's queue takes their facts
NAME_CHARS_MAX = 128
LOOK_S = 0.1  # at whether the gateway that runs has carried an order out

_decode = msgspec.json.Decoder(list[Correction]).decode


def reset(at: Place, said: str = "") -> list[Correction]:
    """What gives back all that is spent of an account. said: by whom it was asked for."""
    return [Correction([(at, None)], {"why": "reset"} | ({"by": said} if said else {}))]


def encoded(corrections: Sequence[Correction]) -> str:
    """An order's words. Raises ValueError where it is too large."""
    if sum(len(one.charges) for one in corrections) > ACCOUNTS_MAX:
        raise ValueError(f"more than {ACCOUNTS_MAX:,} accounts would be corrected at once")
    return msgspec.json.encode(corrections).decode()


def nameable(name: str) -> str:
    """Raises ValueError on what cannot be a correction's or a top-up's name."""
    if not (0 < len(name) <= NAME_CHARS_MAX and name.isprintable() and name.isascii()):
        raise ValueError(f"an id is 1 to {NAME_CHARS_MAX} printable ASCII characters")
    return name


class LeftOut(Exception):
    """A correction was made, but not in the ledger of a gateway that was alone here, where some of it is."""

    def __init__(self, data: Path, name: str) -> None:
        super().__init__(
            f"what was spent before there were workers, in the ledger of {data} itself, is not corrected, the rest is: "
            f"stop the gateway, and do this once more under the id {name}"
        )


class Corrections:
    """Has the ledger make corrections, and the journal tell of them."""

    def __init__(self, ledger: Ledger, outbox: Outbox) -> None:
        self._ledger, self._outbox = ledger, outbox

    def make(self, name: str, corrections: Sequence[Correction]) -> asyncio.Future[list[Charged] | None]:
        """Answer what was charged, None where it was before. As the ledger's `correct`; whoever waits may leave."""
        answer = self._ledger.correct(name, corrections)
        answer.add_done_callback(self._made)  # before the batch is said to be answered: see `Outbox.batch`
        return asyncio.shield(answer)

    def carry_out(self, name: str, said: str) -> asyncio.Future[list[Charged] | None]:
        """The same for an order. Raises ValueError where its words are none."""
        return self.make(name, _decode(said))

    def _made(self, answer: asyncio.Future[list[Charged] | None]) -> None:
        if answer.exception() is None:
            for charged in answer.result() or ():
                self._outbox.tell(charged)


async def without_gateway(
    data: Path, name: str, corrections: Sequence[Correction], tag_of: Callable[[str], str | None] = lambda scope: None
) -> list[Charged] | None:
    """Make a correction where no gateway runs, which begins as one does: what a dead one left is charged first.

    Where it shares budgets with others, its next start tells their vault. tag_of: see `Keys.tag_of`.
    Raises LedgerInUse where one runs, Refused (BOOKS).
    """
    ledger = SqliteLedger(data, time.time)
    try:
        journal = Journal(data / JOURNAL, time.time)
        try:
            outbox = Outbox(ledger, journal)
            outbox.begin(partial(facts, data / JOURNAL))
            ledger.on_batch(outbox.batch)
            if (data / FILE).exists():
                register = Register(data)
                try:
                    register.note_now(told_of(corrections, tag_of, time.time()))
                finally:
                    await register.close()
            return await Corrections(ledger, outbox).make(name, corrections)
        finally:
            await asyncio.to_thread(journal.close)
    finally:
        await ledger.close()


def made(
    data: Path,
    name: str,
    corrections: Sequence[Correction],
    open_keys: Callable[[], AbstractContextManager[Keys]],
    within_s: float,
) -> bool:
    """Have all ledgers in a data directory make a correction: by the gateways that run on them, or without one.

    open_keys: opens the key store, through which gateways hear of it. Whether any has made it now.
    Raises ValueError for one that cannot be ordered, OtherOrder where any of them knows another one by the name: then
    none has made it. TimeoutError where a gateway has not done it in time: it will, once. LeftOut where all that run
    have made it, and workers' parent keeps from it what was spent before there were any. Refused (BOOKS).
    """
    said, new, running, left_out = encoded(corrections), False, [], False
    found = ledgers(data)
    with open_keys() as keys:
        _be_same(name, corrections, keys.ordered(name))
    for path in found:
        was_corrected(path, name, corrections)
    for path in found:
        try:
            with open_keys() as keys:
                new |= asyncio.run(without_gateway(path, name, corrections, keys.tag_of)) is not None
        except LedgerInUse:
            if was_corrected(path, name, corrections):
                continue
            if path == data and directories(data):  # workers have not that one
                left_out = any(read_account(path, at).spent for one in corrections for at, _ in one.charges)
            else:
                running.append(path)
    if running:
        with open_keys() as keys:
            if not keys.order(name, said):
                _be_same(name, corrections, keys.ordered(name))
            _wait(running, name, corrections, within_s)
            keys.order_done(name)
    if left_out:
        raise LeftOut(data, name)
    return new or bool(running)


def ledgers(data: Path) -> list[Path]:
    """The directories of all ledgers in a data directory: the one of a gateway alone, and those of workers."""
    return [path for path in (data, *directories(data)) if ledger_file(path).exists()]


def _be_same(name: str, corrections: Sequence[Correction], waiting: str | None) -> None:
    """Raises OtherOrder where another one waits for the gateway by that name."""
    if waiting is not None and digest_of(_decode(waiting)) != digest_of(corrections):
        raise OtherOrder(name)


def _wait(paths: Sequence[Path], name: str, corrections: Sequence[Correction], within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while not all(was_corrected(path, name, corrections) for path in paths):
        if time.monotonic() > ends_at:
            raise TimeoutError(f"the gateway that runs here has not done it yet; it will, once, under the id {name}")
        time.sleep(LOOK_S)
