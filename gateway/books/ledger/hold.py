"""One request's hold on its key's budget, from the grant to the settlement."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from gateway.books.ledger.contract import Grant, Ledger
from gateway.books.ledger.settlement import Settlement
from guards.budget import Meter

log = structlog.get_logger()


class Hold:
    """A block in which tokens may be delivered; leaving it, by whatever way, settles once at what was metered.

    lease_tokens: how much a top-up asks for.
    low_tokens: with this many left, the meter asks for a top-up.
    meter: counts what is delivered against what is leased.
    payable: tokens that this request may cost at most.
    """

    def __init__(
        self, ledger: Ledger, request_id: str, grant: Grant, lease_tokens: int = 256, low_tokens: int = 64
    ) -> None:
        self.request_id = request_id
        self.payable = grant.payable
        self.meter = Meter(grant.leased, low_tokens)
        self._ledger = ledger
        self._lease_tokens = lease_tokens
        self._asking = False
        self._left = False

    async def __aenter__(self) -> Self:
        return self

    def top_up(self, then: Callable[[], None]) -> None:
        """Ask the ledger for another lease, unless one is being asked for; never waits.

        then: called when the meter knows the answer, unless the block has been left by then. Not called
            for a call that found a top-up in flight: the first one's callback tells.
        """
        if self._asking or self._left:
            return
        self._asking = True
        asked = self._ledger.extend(self.request_id, self._lease_tokens)
        asked.add_done_callback(lambda answer: self._answered(answer, then))

    def _answered(self, answer: asyncio.Future[int], then: Callable[[], None]) -> None:
        self._asking = False
        if error := answer.exception():
            # The stream goes on within the lease it has: nothing beyond it would be covered.
            log.warning("ledger.top_up_failed", request_id=self.request_id, error=str(error))
        if self._left:
            return
        self.meter.granted(0 if error else answer.result())
        then()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert not self._left
        self._left = True
        # On its way before anything is awaited, and no task: a cancellation from here on ends the waiting alone.
        settlement = Settlement(self._ledger, self.request_id, self.meter.spent)
        try:
            await settlement.tried
        except Exception as bug:
            if error is None:
                raise
            log.error("ledger.settlement_failed", request_id=self.request_id, error=repr(bug))
