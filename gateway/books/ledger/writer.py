"""The thread that takes a ledger's steps: many in one transaction, because each commit waits for the disk."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import structlog

from gateway.books.inbox import Inbox
from gateway.books.ledger.overlay import Overlay
from gateway.books.ledger.steps import Held, Step
from gateway.books.ledger.tables import FORMAT, KEEP, LedgerFile, Tables
from guards.refusal import Reason, Refused

log = structlog.get_logger()
T = TypeVar("T")

LINGER_S = 0.002  # for company, while there is some: each commit costs as much as many steps
TRY_S = 1.0  # how soon a ledger that cannot be written is tried again when nobody asks for anything

# What SQLite says of one statement and its values; its other errors are about the file.
STATEMENT_ERRORS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class Ticket(NamedTuple):
    """A step that waits for its turn, and where its answer goes.

    unclaimed: called where the step was taken and nobody waits for the answer any more.
    """

    step: Step[Any]
    answer: asyncio.Future[Any]
    unclaimed: Callable[[], None] | None = None


class Writer:
    """Takes steps in the order they were put, in batches, each batch in one durable transaction.

    An error of a step undoes and reaches that step alone. An error of the transaction undoes the batch
    and reaches all of its steps, as `Refused(Reason.BOOKS)`; the next batch is tried afresh, and without one the
    file is tried every TRY_S, so that `healthy` is never stale.

    file: what the connection has open.
    clock: unix seconds, read once for each batch; called from the thread.
    steps_max: how many steps may wait; batch_max: how many go into one transaction.
    batch: the number of the last batch in the file's outbox.
    journaled: the last batch whose charges are in the journal; whoever knows of a later one says so here.
    on_batch: told, in the event loop, of each batch once all that waited for it have been answered.
    commits: transactions committed so far.
    healthy: whether the last transaction was.
    """

    forget_batches = 32  # at once, of the outbox: to delete a row writes another page, half of what a batch writes

    def __init__(
        self,
        db: sqlite3.Connection,
        file: LedgerFile,
        clock: Callable[[], float],
        steps_max: int,
        batch_max: int,
        batch: int = 0,
    ) -> None:
        self.commits = self.journaled = 0
        self.on_batch: Callable[[int], None] = lambda number: None
        self._batch = batch
        self._forgotten = 0  # batches up to which the outbox has nothing left
        self.healthy = True
        self._db = db
        self._file = file
        self._overlay = Overlay(Tables(db))
        self._clock = clock
        self._inbox: Inbox[Ticket] = Inbox(steps_max, batch_max, linger_s=LINGER_S, lonely=False, idle_s=TRY_S)
        self._thread = threading.Thread(target=self._run, name="holdfast-ledger", daemon=True)
        self._thread.start()

    def put(
        self, step: Step[T], *, always: bool = False, unclaimed: Callable[[], None] | None = None
    ) -> asyncio.Future[T]:
        """Put a step in the queue, from the event loop; a full or closed queue answers at once."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if not self._inbox.put(Ticket(step, answer, unclaimed), always=always):
            answer.set_exception(unavailable())
        return answer

    def held(self, request_id: str) -> Held | None:
        """What a request holds as the last step left it, which may not be on disk yet. From any thread."""
        return self._overlay.hold(request_id)

    async def close(self) -> None:
        """Take the steps that wait, then end the thread and close the file. May be called again."""
        self._inbox.close()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        for batch in self._inbox.batches():
            if batch:
                self._hand_over(batch, self._commit(batch))
            elif not self.healthy:
                self._commit(batch)
        self._db.close()

    def _commit(self, batch: list[Ticket]) -> list[Any]:
        """Take a batch of steps in one transaction; return what each is answered, errors as values.

        What was refused here has not happened, with one exception: where only the flush of a commit failed, a crash
        before the next commit may leave it in the file. Then a hold that was refused is charged at the next start;
        a charge is never lost that way.
        """
        try:
            self._file.check()
            if not self.healthy:
                self._db.execute(f"PRAGMA user_version = {FORMAT}")  # steps that only read would prove nothing
            now_s = self._clock()
            answers = [self._take(ticket.step, now_s) for ticket in batch]
            if (changes := self._overlay.changes()) is not None:
                forget = self.journaled if self.journaled - self._forgotten >= self.forget_batches else 0
                self._db.execute(KEEP, (self._batch + 1, now_s, *changes, forget))
                self._forgotten = forget or self._forgotten
                self.commits += 1
                self._batch += 1
        except (*STATEMENT_ERRORS, OverflowError) as error:
            self._overlay.ended(committed=False)
            return [answer for ticket in batch for answer in self._commit([ticket])] if len(batch) > 1 else [error]
        except Exception as error:
            if self.healthy:  # one line for each time that it breaks, not for each try
                log.error("ledger.commit_failed", error=repr(error), steps=len(batch))
            self.healthy = False
            self._overlay.ended(committed=False)
            return [unavailable() for _ in batch]
        self._overlay.ended(committed=True)
        if not self.healthy:
            log.warning("ledger.commits_again")
        self.healthy = True
        return answers

    def _take(self, step: Step[T], now_s: float) -> T | Exception:
        """Take one step. Only an error of the file goes further: it is the whole batch's."""
        try:
            answer: T | Exception = step.apply(self._overlay, now_s)
        except Refused as refused:
            answer = refused
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, STATEMENT_ERRORS):
                raise
            self._overlay.undo()
            return error
        self._overlay.keep()
        return answer

    def _hand_over(self, batch: list[Ticket], answers: list[Any]) -> None:
        """Wake the event loop once for the whole batch."""
        try:
            batch[0].answer.get_loop().call_soon_threadsafe(self._resolve, batch, answers, self._batch)
        except RuntimeError:
            # The loop is closed, so nobody waits. What was held is charged at the next start.
            log.warning("ledger.answers_unclaimed", steps=len(batch))

    def _resolve(self, batch: list[Ticket], answers: list[Any], number: int) -> None:
        resolve(batch, answers)
        asyncio.get_running_loop().call_soon(self.on_batch, number)  # after the callbacks of these answers


def resolve(batch: list[Ticket], answers: list[Any]) -> None:
    """Give each waiting caller its answer; for one that was cancelled, what it will not claim is undone."""
    for ticket, answer in zip(batch, answers, strict=True):
        if ticket.answer.done():
            if ticket.unclaimed is not None and not isinstance(answer, Exception):
                ticket.unclaimed()
        elif isinstance(answer, Exception):
            ticket.answer.set_exception(answer)
        else:
            ticket.answer.set_result(answer)


def unavailable() -> Refused:
    return Refused(Reason.BOOKS, "the ledger cannot be written to right now", retry_after_s=1.0)
