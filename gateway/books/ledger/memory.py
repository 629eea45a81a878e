"""A ledger that lives and dies with the process: for tests, simulations and trying things out."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from gateway.books.ledger.contract import Grant
from gateway.books.ledger.steps import Audit, Balance, Extend, Held, Open, Others, Settle, Step, limit_or_unlimited
from guards.budget import Account, Limit
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

    def open(self, request_id: str, key_id: str, limit: Limit | None, want: int, least: int = 1) -> Awaitable[Grant]:
        # Nothing to undo for a cancelled caller: awaiting an answer that is there cannot be interrupted.
        return self._take(Open(request_id, key_id, limit_or_unlimited(limit), want, least))

    def extend(self, request_id: str, tokens: int) -> asyncio.Future[int]:
        return self._take(Extend(request_id, tokens))

    def others(self, request_id: str) -> asyncio.Future[int]:
        return self._take(Others(request_id))

    def settle(self, request_id: str, spent: int) -> asyncio.Future[bool]:
        return self._take(Settle(request_id, spent))

    def balance(self, key_id: str, limit: Limit | None) -> Awaitable[Account]:
        return self._take(Balance(key_id, limit_or_unlimited(limit)))

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
        self._accounts: dict[tuple[str, str], Account] = {}
        self._holds: dict[str, Held] = {}

    def account(self, key_id: str, window: str) -> Account | None:
        return self._accounts.get((key_id, window))

    def keep_account(self, key_id: str, window: str, account: Account) -> None:
        self._accounts[key_id, window] = account

    def hold(self, request_id: str) -> Held | None:
        return self._holds.get(request_id)

    def keep_hold(self, request_id: str, held: Held) -> None:
        self._holds[request_id] = held

    def drop_hold(self, request_id: str) -> None:
        del self._holds[request_id]

    def accounts(self) -> Iterable[tuple[str, str, Account]]:
        return [(key_id, window, account) for (key_id, window), account in self._accounts.items()]

    def holds(self) -> Iterable[tuple[str, Held]]:
        return self._holds.items()
