"""What a running gateway must hear of: keys that were revoked, limits that were changed, corrections of the books."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from gateway.books.keys import News
from gateway.books.ledger.contract import Ledger
from gateway.deadlines import Deadlines
from guards.budget import Line
from guards.refusal import Refused

log = structlog.get_logger()

LOOK_S = 0.25  # so that a revoked key's streams end well within a second
AGAIN_S = 2.0  # a request that read its limits before a change may open its hold after it, and bring the old one back,
AGAIN_FOR_S = 20.0  # as long as it takes to count its prompt; so a change is said more than once

Which = tuple[str, str, str]


class Changes:
    """Looks for them, and sees to them; and to corrections that other processes order.

    news: see `Keys.news`; carry_out: see `Corrections`; clock: monotonic, in seconds.
    """

    def __init__(
        self,
        news: Callable[[], News],
        ledger: Ledger,
        deadlines: Deadlines,
        clock: Callable[[], float],
        carry_out: Callable[[str, str], asyncio.Future[Any]],
    ) -> None:
        self._news, self._ledger, self._deadlines, self._clock = news, ledger, deadlines, clock
        self._carry_out = carry_out
        self._changed: dict[Which, tuple[Line, float]] = {}  # each limit once, and since when
        self._said_s = -AGAIN_S
        self._saying: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.look()
            except Exception as error:  # a bug must not be the end of all revocations
                log.error("changes.fault", exc_info=error)

    def look(self) -> None:
        """Look once; nothing is waited for."""
        try:
            revoked, limits, orders = self._news()
        except Refused:
            return  # the key store is not to be read right now: nobody new is let in either
        if revoked and (ended := self._deadlines.revoke(revoked)):
            log.info("keys.revoked", keys=sorted(revoked), requests_ended=ended)
        for order in orders:
            self._order(*order)
        now_s = self._clock()
        for line in limits:
            self._changed[line.scope, line.limit.unit, line.limit.window] = line, now_s
        if self._changed and (limits or now_s - self._said_s >= AGAIN_S):
            self._say(now_s)

    def _order(self, name: str, said: str) -> None:
        """Have an order carried out; while the ledger cannot be written it is tried again."""

        def answered(answer: asyncio.Future[Any]) -> None:
            error = None if answer.cancelled() else answer.exception()
            if isinstance(error, Refused):
                asyncio.get_running_loop().call_later(AGAIN_S, self._order, name, said)
            elif error is not None:
                log.error("ledger.order_failed", order=name, error=repr(error))
            elif answer.result() is not None:
                log.info("ledger.corrected", order=name)

        try:
            self._carry_out(name, said).add_done_callback(answered)
        except ValueError as error:  # a newer holdfast's words
            log.error("ledger.order_failed", order=name, error=repr(error))

    def _say(self, now_s: float) -> None:
        """Tell the ledger of all limits that changed lately; those it could not be told are told again."""
        if self._saying is not None and not self._saying.done():
            return  # it is slow: at a later look
        self._said_s = now_s
        asked = [(which, self._ledger.relimit(line)) for which, (line, _) in self._changed.items()]
        self._saying = asyncio.ensure_future(self._hear(asked, now_s))

    async def _hear(self, asked: list[tuple[Which, asyncio.Future[bool]]], now_s: float) -> None:
        for which, answer in asked:
            try:
                await answer
            except Refused:
                continue  # the ledger cannot be written
            changed = self._changed.get(which)
            if changed is not None and now_s - changed[1] >= AGAIN_FOR_S:
                del self._changed[which]
