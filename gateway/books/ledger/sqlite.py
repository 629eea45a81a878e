"""The embedded default: a ledger in one SQLite file, durable and with nothing to install."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import structlog

from gateway.books.ledger.contract import NOTHING, About, Charged, Correction, Grant, Ledger, Lines, More
from gateway.books.ledger.settlement import Settlement
from gateway.books.ledger.steps import Audit, Balance, Correct, Extend, Open, Relimit, Settle, Step
from gateway.books.ledger.tables import LedgerFile, charge_leftovers, connect, lock, prune, read_outbox
from gateway.books.ledger.writer import Writer
from guards.budget import Account, Limit, Line
from guards.claim import Load
from guards.money import Price, Tokens
from guards.refusal import Refused

log = structlog.get_logger()
T = TypeVar("T")

RECOVERED_TOLD_MAX = 20  # accounts in one log line


class SqliteLedger:
    """`Ledger` in `<data>/ledger.sqlite3`: what it has answered survives a kill and a power cut.

    Holds left by a process that died are charged in full when the ledger is opened, because all of
    them may have been delivered: a gateway killed at any moment never gave away what it had not charged.

    data: directory, made if missing; one gateway at a time, else LedgerInUse.
    clock: unix seconds; called from another thread.
    lock_s: how long to wait for the directory.
    commands_max: how many steps may wait for the disk; above it callers are refused, but for settlements,
        which the holds bound.
    batch_max: how many steps go into one transaction.
    recovered: what of a dead process's holds was charged, by account.
    outbox: what was charged before it was opened, and may not be in the journal.
    """

    def __init__(
        self,
        data: Path,
        clock: Callable[[], float],
        *,
        commands_max: int = 10_000,
        batch_max: int = 256,
        lock_s: float = 0.0,
    ) -> None:
        self._lock = lock(data, lock_s)
        try:
            db = connect(data)
            self.recovered = charge_leftovers(db, data, clock())
            prune(db, data, clock())
            self.outbox = read_outbox(db, data)
            file = LedgerFile(data)
        except BaseException:
            os.close(self._lock)
            raise
        if self.recovered:
            some = {" ".join(at): held for at, held in islice(self.recovered.items(), RECOVERED_TOLD_MAX)}
            log.warning("ledger.recovered", accounts=len(self.recovered), charged=some)
        self._closed = False
        last = self.outbox[-1].batch if self.outbox else 0
        self._writer = Writer(db, file, clock, commands_max, batch_max, last)

    @property
    def commits(self) -> int:
        """Transactions committed since the ledger was opened."""
        return self._writer.commits

    @property
    def healthy(self) -> bool:
        """Whether the ledger can be written, as far as is known; while it cannot be, it is tried every second."""
        return self._writer.healthy

    def journaled(self, batch: int) -> None:
        """Say that the journal has what was charged up to a batch: the outbox need not keep it any more."""
        self._writer.journaled = batch

    def on_batch(self, then: Callable[[int], None]) -> None:
        """Have `then` called with the number of each batch, once all that waited for it have been answered."""
        self._writer.on_batch = then

    def open(
        self,
        request_id: str,
        lines: Sequence[Line],
        price: Price | None,
        want: Load,
        least: Load,
        alone: Load | None = None,
    ) -> Awaitable[Grant]:
        return self.opening(request_id, Open(request_id, Lines.of(lines), price, want, least, alone))

    def opening(self, request_id: str, step: Step[Grant]) -> "Opening":
        """Take a step that opens a hold; to be awaited, once."""
        opening = Opening(self, request_id)
        opening.answer = self._writer.put(step, unclaimed=opening.give_back)
        return opening

    def step(self, step: Step[T]) -> asyncio.Future[T]:
        """Take any step; its own errors reach the caller as they are."""
        return self._writer.put(step)

    def under(self, request_id: str) -> Lines | None:
        """The limits that a request holds of; None where it holds nothing."""
        held = self._writer.held(request_id)
        return None if held is None else held.lines

    def extend(self, request_id: str, want: Load, least: int) -> asyncio.Future[More]:
        return self._writer.put(Extend(request_id, want, least))

    def settle(self, request_id: str, used: Tokens, about: About = NOTHING) -> asyncio.Future[Charged | None]:
        # Never refused for a full queue: there is one for each hold, and a lost one blocks its tokens.
        return self._writer.put(Settle(request_id, used, about), always=True)

    def relimit(self, line: Line) -> asyncio.Future[bool]:
        return self._writer.put(Relimit(line))

    def correct(self, name: str, corrections: Sequence[Correction]) -> asyncio.Future[list[Charged] | None]:
        return self._writer.put(Correct(name, corrections))

    def balance(self, scope: str, limit: Limit) -> Awaitable[Account]:
        return self._writer.put(Balance(scope, limit))

    def audit(self) -> Awaitable[list[str]]:
        return self._writer.put(Audit())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Cancelled openings are given back when their answers come; one more answer comes after them.
        with suppress(Refused):
            await self._writer.put(Balance("", Limit(0)), always=True)
        await self._writer.close()
        os.close(self._lock)


class Opening(Awaitable[Grant]):
    """A grant on its way to its caller; if the caller is cancelled before it arrives, it goes back."""

    __slots__ = ("_ledger", "_request_id", "answer")

    answer: asyncio.Future[Grant]

    def __init__(self, ledger: Ledger, request_id: str) -> None:
        self._ledger = ledger
        self._request_id = request_id

    def __await__(self) -> Generator[Any, None, Grant]:
        try:
            return (yield from self.answer.__await__())
        except asyncio.CancelledError:
            # Two cases: the answer is yet to come, and the writer finds that nobody waits for it any more;
            # or it came in the moment of the cancellation.
            if self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None:
                self.give_back()
            raise

    def give_back(self) -> None:
        """Settle a hold that its caller will never hear of."""
        Settlement(self._ledger, self._request_id, Tokens())
