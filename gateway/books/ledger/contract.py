"""What a token ledger promises, whichever engine keeps it."""

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from guards.budget import Account, Limit


class Grant(NamedTuple):
    """A hold that is committed.

    leased: tokens that may be delivered under it.
    payable: tokens that the account could pay at most, were every other hold given back unused.
    window: the name of the window that the hold is charged to, also when it is settled in a later one.
    """

    leased: int
    payable: int
    window: str


class Ledger(Protocol):
    """The accounts of all keys and the holds on them; used from one event loop.

    Every call is one atomic step, taken in the order of the calls, and on its way when the call
    returns: a caller that is cancelled while it waits for the answer has still been heard. Each may be
    answered with `Refused(Reason.BOOKS)`; then nothing has changed. After every step, in each account:

        held + spent + free = limit,    held = the sum of its holds

    A limit that is passed in wins over the one of earlier calls. An account whose limit was lowered
    below what it has spent and held has nothing free; it takes nothing back.
    """

    def open(self, request_id: str, key_id: str, limit: Limit | None, want: int, least: int = 1) -> Awaitable[Grant]:
        """Hold `want` tokens, or what is free, but only if `least` are free. To be awaited, once.

        limit: None for a key without a budget; it is accounted for all the same.

        Raises Refused: BUDGET when `least` could not be paid even if all other holds were given back,
        HELD when it could be then; ValueError when the request already holds. A caller that is
        cancelled before it has the grant owns none: the ledger gives the hold back.
        """

    def extend(self, request_id: str, tokens: int) -> asyncio.Future[int]:
        """Add up to `tokens` to a hold; the answer is how many, 0 when none are free or nothing is held."""

    def others(self, request_id: str) -> asyncio.Future[int]:
        """Tell how many tokens other requests hold of this one's account: some may be given back."""

    def settle(self, request_id: str, spent: int) -> asyncio.Future[bool]:
        """Give a hold back and charge `spent` tokens of it, once; False when there is no such hold (any more).

        Raises AssertionError when more was spent than leased; then the hold stays as it was.
        """

    def balance(self, key_id: str, limit: Limit | None) -> Awaitable[Account]:
        """Tell what the key's account is in the current window."""

    def audit(self) -> Awaitable[list[str]]:
        """Name every account and hold that breaks an invariant; an account over a lowered limit is among them."""

    async def close(self) -> None:
        """Finish the steps that are on their way, then take no more."""
