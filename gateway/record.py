"""One request in the books and metrics: every fact once, no prompt and no answer ever."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from gateway.books.journal import Journal
from gateway.books.keys import Tenant
from gateway.stream.call import Call
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.plain import Plain
from gateway.stream.relay import Relay
from gateway.watch.metrics import Metrics
from guards.refusal import Ending, Refused

log = structlog.get_logger()


class Records:
    """Opens a record per request."""

    def __init__(
        self,
        journal: Journal,
        metrics: Metrics,
        clock: Callable[[], float],
        learn: Callable[[str, int, int], None],
    ) -> None:
        self.journal, self.metrics, self.clock, self.learn = journal, metrics, clock, learn

    def open(self, call: Call, tenant: Tenant, received_at: float) -> "Record":
        return Record(self, call, tenant, received_at)


class Record:
    """A block around one request; leaving it, by whatever way, writes its one Ending."""

    def __init__(self, books: Records, call: Call, tenant: Tenant, received_at: float) -> None:
        self._books, self._call, self._tenant = books, call, tenant
        self._received_at = received_at
        self.relay: Relay | Plain | None = None
        self.replica: str | None = None
        self._losses: list[Cause] = []
        self._held = False

    def held(self, leased: int) -> None:
        """Budget is held; from here on a settlement follows."""
        self._held = True
        self._books.metrics.hold_opened()
        self._fact("hold.opened", leased_tokens=leased)

    def gaps(self, gaps: list[float]) -> None:
        """Seconds between tokens, in a batch."""
        self._books.metrics.inter_token(self._call.model, gaps)

    def leg_opened(self, replica: str) -> float:
        """A server is being asked; answers the gateway's own time so far, in seconds."""
        overhead_s = self._books.clock() - self._received_at
        if self.replica is None:
            self._books.metrics.added_latency(overhead_s)
        self.replica = replica
        self._fact("leg.opened", replica=replica, tokens=self._delivered())
        return overhead_s

    def leg_ended(self, replica: str, end: LegEnd, lost: bool) -> None:
        """A server has answered, or not."""
        self._books.metrics.leg_ended(replica, end.cause)
        if lost or end.cause is not Cause.DONE:
            self._fact("leg.ended", replica=replica, cause=end.cause, lost=lost, tokens=self._delivered())
        if lost:
            self._losses.append(end.cause)
            log.warning(
                "leg.lost", request_id=self._call.request_id, replica=replica, cause=end.cause, detail=end.detail
            )

    def __enter__(self) -> Self:
        self._books.metrics.stream_opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = error if isinstance(error, Refused) else self.relay.refusal if self.relay else None
        ending, detail = self._ending(error, refused)
        self._measure(ending)
        relay = self.relay
        facts = {
            "ending": ending,
            "reason": refused.reason if refused else None,
            "replica": self.replica,
            "prompt_tokens": relay.prompt_tokens if relay else 0,
            "completion_tokens": relay.completion_tokens if relay else 0,
            "charged_tokens": relay.meter.spent if relay else 0,
            "failovers": relay.failovers if relay else 0,
            "recomputed_tokens": relay.recomputed if relay else 0,
            "gap_ms": round(relay.gap_s * 1e3, 1) if relay else 0,
            "took_s": round(self._books.clock() - self._received_at, 4),
        }
        facts = {name: value for name, value in facts.items() if value is not None}
        self._fact("request.settled", **facts)
        log.info("request.settled", request_id=self._call.request_id, model=self._call.model, detail=detail, **facts)

    def _measure(self, ending: Ending) -> None:
        relay, metrics, model = self.relay, self._books.metrics, self._call.model
        metrics.stream_closed()
        if self._held:
            metrics.hold_settled()
        metrics.request_ended(model, ending)
        if relay is None:
            return
        completion = relay.completion_tokens
        metrics.tokens(model, prompt=relay.prompt_tokens, completion=completion, recomputed=relay.recomputed)
        for cause in self._losses if relay.completion_tokens else ():
            metrics.failed_over(model, cause, relay.gap_s)
        if relay.first_token_at is not None:
            metrics.first_token(model, relay.first_token_at - self._received_at)
        if ending is Ending.FINISHED and completion:
            self._books.learn(model, relay.prompt_tokens, completion // self._call.choices)

    def _ending(self, error: BaseException | None, refused: Refused | None) -> tuple[Ending, str]:
        if refused is not None:
            return Ending.REFUSED, refused.detail
        if self.relay is not None and self.relay.ending is not None:
            return self.relay.ending, self.relay.detail
        if error is None or isinstance(error, Exception):
            return Ending.FAULT, repr(error)
        return Ending.CLIENT_LEFT, "the client hung up"

    def _delivered(self) -> int:
        return self.relay.completion_tokens if self.relay else 0

    def _fact(self, kind: str, **fields: object) -> None:
        call, tenant = self._call, self._tenant
        self._books.journal.append(
            kind, request_id=call.request_id, key_id=tenant.key_id, user=tenant.user, model=call.model, **fields
        )
