"""A ledger that lives and dies with the process: for tests, simulations and trying things out."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from gateway.books.ledger.contract import NOTHING, About, Cell, Charged, Correction, Grant, Lines, More, Place
from gateway.books.ledger.steps import Audit, Balance, Correct, Extend, Held, Open, Relimit, Settle, Step
from guards.budget import Account, Limit, Line
from guards.claim import Load
from guards.money import Price, Tokens
from guards.refusal import Reason, Refused

T = TypeVar("T")


class MemoryLedger:
    """`Ledger` in two dicts. Every call has been answered when it returns.

    clock: unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._shelf = MemoryShelf()
        self._closed = False

    def open(
        self,
        request_id: str,
        lines: Sequence[Line],
        price: Price | None,
        want: Load,
        least: Load,
        alone: Load | None = None,
    ) -> Awaitable[Grant]:
        # Nothing to undo for a cancelled caller: awaiting an answer that is there cannot be interrupted.
        return self._take(Open(request_id, Lines.of(lines), price, want, least, alone))

    def extend(self, request_id: str, want: Load, least: int) -> asyncio.Future[More]:
        return self._take(Extend(request_id, want, least))

    def settle(self, request_id: str, used: Tokens, about: About = NOTHING) -> asyncio.Future[Charged | None]:
        return self._take(Settle(request_id, used, about))

    def relimit(self, line: Line) -> asyncio.Future[bool]:
        return self._take(Relimit(line))

    def correct(self, name: str, corrections: Sequence[Correction]) -> asyncio.Future[list[Charged] | None]:
        return self._take(Correct(name, corrections))

    def balance(self, scope: str, limit: Limit) -> Awaitable[Account]:
        return self._take(Balance(scope, limit))

    def audit(self) -> Awaitable[list[str]]:
        return self._take(Audit())

    async def close(self) -> None:
        self._closed = True

    def _take(self, step: Step[T]) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            if self._closed:
                raise Refused(Reason.BOOKS, "the ledger is closed", retry_after_s=1.0)
            answer.set_result(step.apply(self._shelf, self._clock()))
        except Exception as error:
            answer.set_exception(error)
        return answer


class MemoryShelf:
    """`Shelf` in two dicts."""

    def __init__(self) -> None:
        self._cells: dict[Place, Cell] = {}
        self._holds: dict[str, Held] = {}
        self._corrected: dict[str, str] = {}

    def cell(self, place: Place) -> Cell:
        return self._cells.get(place) or self._cells.setdefault(place, Cell(place, None))

    def write(self, cell: Cell, account: Account) -> None:
        cell.account = account

    def write_all(self, cells: tuple[Cell, ...], accounts: Iterable[Account]) -> None:
        for cell, account in zip(cells, accounts, strict=True):
            cell.account = account

    def hold(self, request_id: str) -> Held | None:
        return self._holds.get(request_id)

    def keep_hold(self, request_id: str, held: Held) -> None:
        self._holds[request_id] = held

    def drop_hold(self, request_id: str) -> None:
        del self._holds[request_id]

    def tell(self, charged: Charged) -> None:
        """It has no disk to lose it from."""

    def corrected(self, name: str) -> str | None:
        return self._corrected.get(name)

    def keep_corrected(self, name: str, digest: str) -> None:
        self._corrected[name] = digest

    def corrections(self) -> int:
        return len(self._corrected)

    def accounts(self) -> Iterable[tuple[Place, Account]]:
        return [(at, cell.account) for at, cell in self._cells.items() if cell.account is not None]

    def holds(self) -> Iterable[tuple[str, Held]]:
        return self._holds.items()
