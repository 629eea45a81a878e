"""One charge that must reach the books, whatever becomes of the request it is for."""

import asyncio
from collections.abc import Callable

import structlog

from gateway.books.ledger.contract import NOTHING, About, Charged, Ledger
from guards.money import Tokens
from guards.refusal import Refused

log = structlog.get_logger()

RETRY_S_FIRST = 0.1  # doubled after each try
RETRY_S_MAX = 5.0
TRIES_MAX = 1000  # an hour and twenty minutes; a hold never settled is charged in full at the next start


class Settlement:
    """Settles a hold, on its way when the constructor returns; tries again while the books are unavailable.

    No task and nothing to await: it cannot be cancelled, and the event loop keeps it alive.

    then: called with what is charged, and whether that is the first it hears: after the first try, None where that
        failed, and once more if a later one charges it. Never within the constructor; to be set before anything is
        awaited.
    """

    __slots__ = ("_about", "_ledger", "_request_id", "_tries", "_used", "then")

    def __init__(self, ledger: Ledger, request_id: str, used: Tokens, about: About = NOTHING) -> None:
        self._ledger = ledger
        self._request_id = request_id
        self._used, self._about = used, about
        self.then: Callable[[Charged | None, bool], None] | None = None
        self._tries = 0
        self._try()

    def _try(self) -> None:
        self._tries += 1
        self._ledger.settle(self._request_id, self._used, self._about).add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Charged | None]) -> None:
        error = answer.exception()
        if isinstance(error, Refused):
            self._try_later(error)
        elif error is not None:  # a bug: the hold stays as it was, and is charged in full at the next start
            log.error("ledger.settlement_failed", request_id=self._request_id, error=repr(error))
        elif self._tries > 1:
            log.warning("ledger.settled_late", request_id=self._request_id, tries=self._tries)
        if error is None or self._tries == 1:
            then = self.then
            if error is None:
                self.then = None  # whoever is told holds this, and would not be freed
            if then is not None:
                then(None if error is not None else answer.result(), self._tries == 1)

    def _try_later(self, error: Refused) -> None:
        known = {"request_id": self._request_id, "used": self._used._asdict(), "tries": self._tries}
        if self._tries >= TRIES_MAX:
            log.error("ledger.settlement_abandoned", error=error.detail, **known)
            return
        if self._tries == 1:
            log.warning("ledger.settlement_delayed", error=error.detail, **known)
        delay_s = min(RETRY_S_MAX, RETRY_S_FIRST * 2 ** min(self._tries - 1, 10))
        asyncio.get_running_loop().call_later(delay_s, self._try)
