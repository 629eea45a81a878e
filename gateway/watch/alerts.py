"""What somebody should hear of: a share of a budget that was reached, a breaker that turned, a server whose memory
looks broken. Each once.

An alert is a fact in the journal, a line in the log, a count in the metrics, and where one is configured a webhook.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import msgspec
import structlog

from gateway.watch.metrics import Metrics
from guards.budget import UNLIMITED, Account, Line, Window
from guards.burn import State, Turn
from guards.refusal import Refused

log = structlog.get_logger()

LOOK_S = 0.5
LOOKS_MAX = 512  # accounts asked for at one look; the others have their turn at the next
TOUCHED_MAX = 8192  # sets of limits that were charged since; beyond it, those that are charged again later
KNOWN_MAX = 16_384  # accounts whose last share is remembered here; of the others the book knows
LEVELS = ("org", "team", "user", "key")  # sessions and agents have names that clients make up
WINDOWS = (Window.DAY, Window.MONTH, Window.TOTAL)  # a shorter one is over before anybody has read of it
NEARLY = 0.999  # of a share counts as it: the last micro-dollars of a budget seldom pay for a token
ALARMING = (State.OPEN, State.DEGRADED, State.CHEAPER)

Append = Callable[[str, dict[str, Any], dict[str, Any]], None]
Where = tuple[str, str, str]  # scope, unit, and the window's own name


class Book(Protocol):
    """What was told is remembered there, over restarts."""

    def first(self, alert_id: str, body: bytes) -> bool:
        """Keep an alert; False where it was told before."""


class Alert(NamedTuple):
    """One thing to be told. alert_id: the same for the same thing, whoever tells it, so that receivers know."""

    alert_id: str
    body: bytes


class Alerts:
    """Tells them. Used from one event loop; nothing here waits for a receiver.

    append: of the journal; balance: of the ledger; clock: Unix seconds.
    shares: of a budget, at which somebody is told; book: needed where there are some.
    send: gives an alert to the webhook, where there is one; never waits.
    """

    def __init__(
        self,
        append: Append,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        shares: Sequence[float] = (),
        balance: Callable[..., Awaitable[Account]] | None = None,
        book: Book | None = None,
    ) -> None:
        self._append, self._metrics, self._clock = append, metrics, clock
        self._shares, self._balance, self._book = sorted(shares), balance, book
        self.send: Callable[[Alert], None] = lambda alert: None
        self._touched: dict[int, Sequence[Line]] = {}
        self._due: dict[Line, None] = {}
        self._known: dict[Where, float] = {}

    def charged(self, lines: Sequence[Line]) -> None:
        """Something was charged under these limits: they are looked at soon. Costs next to nothing."""
        if len(self._touched) < TOUCHED_MAX:
            self._touched[id(lines)] = lines

    def turned(self, turn: Turn) -> None:
        """A breaker is in another state."""
        scope, line, model, before, after, why, ended = turn
        facts = {
            "scope": scope,
            "model": model,
            "budget": f"{line.limit.unit} per {line.limit.window} of {line.scope}",
            "before": before.value,
            "state": after.value,
            "why": why,
            "requests_ended": ended,
        }
        self._metrics.breaker_turned(scope.partition(":")[0], after.value)
        self._tell("breaker.turned", facts, f"turn_{uuid4().hex}", loud=after in ALARMING)

    def drained(self, replica: str, *, drained: bool, why: str) -> None:
        """A replica gets no new requests any more, or does again."""
        facts = {"replica": replica, "drained": drained, "why": why}
        self._tell("replica.drained", facts, f"drain_{uuid4().hex}", loud=drained)

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # a bug must not be the end of all alerts
                log.error("alerts.fault", exc_info=error)

    async def look(self) -> None:
        """Look once at the accounts that were charged since."""
        touched, self._touched = self._touched, {}
        self._due.update((line, None) for lines in touched.values() for line in lines if _told_of(line))
        due = list(self._due)[:LOOKS_MAX]
        if not due or self._balance is None:
            return
        now_s = self._clock()
        found = await asyncio.gather(*(self._balance(*line) for line in due), return_exceptions=True)
        for line, account in zip(due, found, strict=True):
            window = line.limit.window.id_at(now_s)
            if isinstance(account, Refused) or window != line.limit.window.id_at(self._clock()):
                continue  # the ledger cannot be asked now, or it may be another window's: at the next look
            del self._due[line]
            if isinstance(account, BaseException):
                log.error("alerts.balance_failed", scope=line.scope, exc_info=account)
            else:
                self._compare(line, window, account)

    def _compare(self, line: Line, window: str, account: Account) -> None:
        """Tell each share that was reached and not told."""
        where = line.scope, line.limit.unit.value, window
        last = self._known.get(where, 0.0)
        for share in self._shares:
            if last < share and account.spent >= account.limit * share * NEARLY:
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[where] = share
                self._reached(where, share, account)

    def _reached(self, where: Where, share: float, account: Account) -> None:
        scope, unit, window = where
        facts = {"scope": scope, "unit": unit, "window": window, "share": share}
        alert_id = "share_" + sha256(msgspec.json.encode([*where, share])).hexdigest()[:32]
        self._tell("budget.reached", facts | {"used": account.spent, "of": account.limit}, alert_id)

    def _tell(self, kind: str, facts: dict[str, Any], alert_id: str, *, loud: bool = True) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        alert = Alert(alert_id, msgspec.json.encode({"type": kind, "timestamp": at, "data": facts}))
        if self._book is not None and not self._book.first(*alert):
            return
        self._append(kind, {}, facts)
        self._metrics.alerted(kind)
        (log.warning if loud else log.info)(kind, **facts)
        self.send(alert)


def _told_of(line: Line) -> bool:
    limit = line.limit
    return limit.window in WINDOWS and limit.amount < UNLIMITED and line.scope.partition(":")[0] in LEVELS
