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

# For a top-up, with the stream paused once its lease is used up:
ASK_AGAIN_S = 0.1
BROKEN_S_MAX = 10.0  # while the ledger cannot be written
HELD_S_MAX = 1.0  # while other requests hold what is left: longer, and streams that share a budget starve each other


class Hold:
    """A block in which tokens may be delivered; leaving it, by whatever way, settles once at what was metered.

    Nobody waits for the settlement to be durable: until it is, the hold is, and covers more than was delivered.

    lease_tokens: how much a top-up asks for.
    low_tokens: with this many left, the meter asks for a top-up.
    meter: counts what is delivered against what is leased.
    failure: why the ledger could not be asked for more, at last; None where it could.
    """

    __slots__ = (
        "_asking", "_lease_tokens", "_ledger", "_left", "failure", "meter", "request_id",
    )  # fmt: skip

    def __init__(
        self, ledger: Ledger, request_id: str, grant: Grant, lease_tokens: int = 256, low_tokens: int = 64
    ) -> None:
        self.request_id = request_id
        self.meter = Meter(grant.leased, low_tokens)
        self._ledger = ledger
        self._lease_tokens = lease_tokens
        self.failure: BaseException | None = None
        self._asking = False
        self._left = False

    def __enter__(self) -> Self:
        return self

    def top_up(self, then: Callable[[], None]) -> None:
        """Ask the ledger for another lease, unless one is being asked for; never waits.

        While the ledger cannot be written, or other requests hold what is left and may give it back, it is
        asked again, for a while. Only then does the meter hear that there is no more; if it was
        the ledger's fault, `failure` says so.

        then: called when the meter knows the answer, unless the block has been left by then. Not called
            for a call that found a top-up in flight: the first one's callback tells.
        """
        if not (self._asking or self._left):
            self._asking = True
            self._ask(then, asyncio.get_running_loop().time())

    def _ask(self, then: Callable[[], None], since_s: float, *, last: bool = False) -> None:
        if not self._left:
            asked = self._ledger.extend(self.request_id, self._lease_tokens)
            asked.add_done_callback(lambda answer: self._answered(answer, then, since_s, last))

    def _answered(self, answer: asyncio.Future[int], then: Callable[[], None], since_s: float, last: bool) -> None:
        self.failure = answer.exception()
        granted = 0 if self.failure else answer.result()
        waited_s = asyncio.get_running_loop().time() - since_s
        if granted or last or waited_s > (BROKEN_S_MAX if self.failure else HELD_S_MAX):
            self._told(granted, then)
        elif self.failure:
            self._again(then, since_s)
        else:
            others = self._ledger.others(self.request_id)
            others.add_done_callback(lambda answer: self._looked(answer, then, since_s))

    def _looked(self, others: asyncio.Future[int], then: Callable[[], None], since_s: float) -> None:
        if others.exception() or others.result():
            self._again(then, since_s)
        else:
            self._ask(then, since_s, last=True)  # once more: the last of them may have settled just now

    def _again(self, then: Callable[[], None], since_s: float) -> None:
        asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask, then, since_s)

    def _told(self, granted: int, then: Callable[[], None]) -> None:
        self._asking = False
        if self.failure:
            # The stream ends within the lease it has: nothing beyond it would be covered.
            log.warning("ledger.top_up_failed", request_id=self.request_id, error=str(self.failure))
        if not self._left:
            self.meter.granted(granted)
            then()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert not self._left
        self._left = True
        Settlement(self._ledger, self.request_id, self.meter.spent)
