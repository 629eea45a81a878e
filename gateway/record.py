"""One request in the books and metrics: every fact once, no prompt and no answer ever."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import structlog

from gateway.books.journal import NOTHING, Journal
from gateway.books.ledger.contract import Charged
from gateway.books.ledger.hold import Hold
from gateway.books.ledger.tables import in_facts
from gateway.books.tenants import Tenant
from gateway.stream.call import Call
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.plain import Plain
from gateway.stream.relay import Relay
from gateway.stream.seams import Sink
from gateway.turns import Turn
from gateway.watch.metrics import Metrics
from guards.budget import Line
from guards.continuing import Way
from guards.ladder import Step
from guards.money import Tokens
from guards.refusal import Ending, Reason, Refused

NOTHING_USED = Tokens()


class Records:
    """Opens a record per request. charged: told of the limits that something was charged under."""

    def __init__(
        self,
        journal: Journal,
        metrics: Metrics,
        clock: Callable[[], float],
        learn: Callable[[str, int, int], None],
        charged: Callable[[Sequence[Line]], None] | None = None,
    ) -> None:
        self.charged = charged
        self.journal, self.metrics, self.clock, self.learn = journal, metrics, clock, learn
        self.running: dict[Record, None] = {}  # those that hold budget, in the order of their holds
        self.log = structlog.get_logger().bind()  # once: to bind it takes as long as to write a line

    def open(self, call: Call, tenant: Tenant, sink: Sink) -> "Record":
        """Raises Refused (BOOKS) while facts cannot be written: what nobody could account for is not begun."""
        if not self.journal.healthy:
            raise Refused(Reason.BOOKS, "The journal cannot be written right now.", retry_after_s=1.0)
        return Record(self, call, tenant, sink)


class Record:
    """A block around one request; leaving it, by whatever way, writes its one Ending."""

    __slots__ = (
        "_about", "_asked", "_books", "_call", "_hold", "_lines", "_losses", "_overhead_s", "_retries", "_sink",
        "_turn", "answer", "replica",
    )  # fmt: skip

    def __init__(self, books: Records, call: Call, tenant: Tenant, sink: Sink) -> None:
        self._books, self._call, self._sink, self._lines = books, call, sink, tenant.lines
        self.answer: Relay | Plain | None = None
        self.replica: str | None = None
        self._turn: Turn | None = None
        self._overhead_s = 0.0
        self._retries = 0
        self._losses: list[Cause] = []  # in mid-answer
        self._hold: Hold | None = None
        self._asked = call.model  # another one may answer
        self._about: dict[str, object] = {"request_id": call.request_id, **tenant.about, "model": call.model}
        if call.session is not None:
            self._about["session"] = call.session
        if call.agent is not None:
            self._about["agent"] = call.agent

    def held(self, hold: Hold, turn: Turn, more: Mapping[str, Any] = NOTHING) -> None:
        """Budget is held; from here on a settlement follows. more: what else is to be known of the request."""
        self._hold, self._turn = hold, turn
        if more:
            self._about |= more
            for step in more.get("degraded", ()):
                self._books.metrics.degraded(self._asked, step)
        hold.about = self._about
        self._books.running[self] = None
        self._books.metrics.hold_opened()

    def shown(self) -> dict[str, object]:
        """A request that holds budget, as operators see it. for_s: how long ago it came, in seconds."""
        hold = self._hold
        assert hold is not None
        assert self._turn is not None
        held = [{**at._asdict(), "held": amount} for at, amount in hold.held]
        return self._about | self._turn.about | {
            "replica": self.replica,
            "for_s": round(self._books.clock() - self._sink.received_at, 3),
            "leased_tokens": hold.meter.leased,
            "used": hold.used._asdict(),
            "held": held,
        }

    def gaps(self, gaps: list[float]) -> None:
        """Seconds between tokens, in a batch."""
        self._books.metrics.inter_token(self._call.model, gaps)

    def leg_opened(self, replica: str, same_model: bool | None = None, way: Way | None = None) -> float:
        """A server is being asked; answers the gateway's own time before the first one was, in seconds.

        same_model: whether it has the fingerprint of the one that was lost; None where that is not known.
        way: how the answer goes on there, where its client has some of it.
        Without the wait for its turn: that is the servers' time, and told by a metric and a fact of its own.
        """
        if self.replica is None:
            waited_s = 0.0 if self._turn is None else self._turn.waited_s
            self._overhead_s = self._books.clock() - self._sink.received_at - waited_s
            self._books.metrics.added_latency(self._overhead_s)
        elif not self._delivered():
            self._retries += 1
            self._books.metrics.degraded(self._asked, Step.RETRIED)
        self.replica = replica
        leased = self._hold.meter.leased if self._hold is not None else 0
        facts: dict[str, object] = {"replica": replica, "leased_tokens": leased, "tokens": self._delivered()}
        if self._delivered():  # the prompt and those tokens are computed again there, whichever it is
            facts |= {"same_model": same_model, "by": way}
            if way is not None:
                self._books.metrics.continued(self._call.model, way)
        self._fact("leg.opened", facts)
        return self._overhead_s

    def hedged(self, replica: str, way: Way | None = None) -> None:
        """A second server is being asked, since the first is silent. way: as in `leg_opened`."""
        self._books.metrics.hedged(self._call.model)
        facts: dict[str, object] = {"replica": replica, "beside": self.replica, "tokens": self._delivered()}
        self._fact("hedge.opened", facts if way is None else facts | {"by": way})

    def hedge_won(self, replica: str) -> float:
        """The second server was faster; answers the gateway's own time before the first one was asked, in seconds."""
        self.replica = replica
        if self._turn is not None:
            self._turn.won(replica)
        self._books.metrics.hedge_won(self._call.model)
        if self._delivered():
            self._losses.append(Cause.OUTRUN)
        self._fact("hedge.won", {"replica": replica, "tokens": self._delivered()})
        return self._overhead_s

    def leg_ended(self, replica: str, end: LegEnd, lost: bool) -> None:
        """A server has answered, or not."""
        self._books.metrics.leg_ended(replica, end.cause)
        if lost or end.cause is not Cause.DONE:
            failed = lost and not end.planned
            facts = {"replica": replica, "cause": end.cause, "lost": failed, "tokens": self._delivered()}
            self._fact("leg.ended", facts)
        if lost:
            if self._delivered():
                self._losses.append(end.cause)
            say, event = (self._books.log.warning, "leg.lost") if failed else (self._books.log.info, "leg.moved")
            say(event, request_id=self._call.request_id, replica=replica, cause=end.cause, detail=end.detail)

    def __enter__(self) -> Self:
        self._books.metrics.request_opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        answer = self.answer
        self._books.running.pop(self, None)
        refused = error if isinstance(error, Refused) else answer.refusal if answer else None
        ending = self._ending(error, refused)
        self._measure(ending)
        facts: dict[str, object] = {
            "ending": ending,
            "took_s": round(self._books.clock() - self._sink.received_at, 4),
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }
        if refused is not None:
            facts["reason"] = refused.reason
        if self.replica is not None:
            facts["replica"] = self.replica
        if answer is not None:
            pauses = answer.pace.pauses
            facts |= {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "failovers": answer.failovers,
                "recomputed_tokens": answer.house.recomputed,
                "hedged_tokens": answer.house.hedged,
                "gap_ms": round(max(pauses) * 1e3, 1) if pauses else 0.0,
            }
            if answer.house.restored:
                facts["restored_tokens"] = answer.house.restored
        if self._retries:
            facts["retries"] = self._retries
        if self._turn is not None:
            facts |= self._turn.judged(ending, refused)
            if self._turn.came_from is not None:
                facts["came_from"] = self._turn.came_from
                self._came(self._turn.came_from)
        self._settle(facts)
        if ending is not Ending.FINISHED:  # what ends as it should is in the journal: a log line costs twice as much
            detail = (
                answer.detail if answer is not None and refused is None else ""
            )  # servers' words may quote a prompt
            call = self._call
            used = self._hold.used if self._hold is not None else NOTHING_USED
            self._books.log.info(
                "request.settled",
                request_id=call.request_id,
                model=call.model,
                detail=detail,
                **facts,
                charged_tokens=used.input + used.output,
            )

    def _settle(self, facts: dict[str, object]) -> None:
        """Tell the end once the ledger has it, so that the journal never says more than that: see `books.outbox`."""
        hold = self._hold
        if hold is None or hold.settlement is None:
            self._fact("request.settled", facts | {"charged_tokens": 0})
            return
        hold.settlement.then = partial(self._settled, facts)

    def _settled(self, facts: dict[str, object], charged: Charged | None, first: bool) -> None:
        """The ledger has answered. Charges that come late, or are too many for one fact, have facts of their own."""
        facts = facts | self._worth(charged) if first else {}
        if charged is None:
            facts["unsettled"] = True
            return self._fact("request.settled", facts)
        if self._books.charged is not None:
            self._books.charged(self._lines)
        kind = "request.settled" if first else "request.charged"
        for part, more in in_facts(charged.charges):
            facts["charges"] = part
            if more:
                facts["more"] = True
            self._fact(kind, facts)
            kind, facts = "request.charged", {}
        return None

    def _worth(self, charged: Charged | None) -> dict[str, object]:
        """What the request used: in tokens, which stay true whatever becomes of their price, and in money."""
        assert self._hold is not None
        into, out, cached, reasoning = self._hold.used
        facts: dict[str, object] = {"charged_tokens": into + out}
        if cached or reasoning:
            facts |= {"cached_tokens": cached, "reasoning_tokens": reasoning}
        if charged is not None and charged.cost is not None:
            facts["cost"] = charged.cost
        return facts

    def _measure(self, ending: Ending) -> None:
        answer, metrics, model = self.answer, self._books.metrics, self._call.model
        metrics.request_ended(model, ending)
        if self._hold is not None:
            metrics.hold_settled()
        if answer is None:
            return
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        metrics.tokens(model, prompt, completion, *answer.house)
        if self._losses:
            for cause, pause_s in zip(self._losses, answer.pace.pauses, strict=False):  # a last one may have no pause
                metrics.failed_over(model, cause, pause_s)
        if answer.pace.first_token_at is not None:
            metrics.first_token(model, answer.pace.first_token_at - self._sink.received_at)
        if ending is Ending.FINISHED and completion:
            self._books.learn(model, prompt, completion // self._call.choices)

    def _came(self, was: str) -> None:
        """Tell how much of the prompt of a session that came from elsewhere was found; what nobody told was not."""
        tokens = 0 if self.answer is None else self.answer.prompt_tokens
        cached = min(tokens, 0 if self._hold is None else self._hold.cached)
        self._books.metrics.came(self._call.model, cached, tokens - cached)
        about = {"request_id": self._call.request_id, "model": self._call.model, "was": was, "replica": self.replica}
        self._books.log.info("session.came", prompt_tokens=tokens, cached_tokens=cached, **about)

    def _ending(self, error: BaseException | None, refused: Refused | None) -> Ending:
        if refused is not None:
            return Ending.REFUSED
        if self.answer is not None and self.answer.ending is not None:
            return self.answer.ending
        if error is None or isinstance(error, Exception):
            return Ending.FAULT
        return Ending.CLIENT_LEFT if self._sink.gone else Ending.STOPPED

    def _delivered(self) -> int:
        return self.answer.completion_tokens if self.answer else 0

    def _fact(self, kind: str, facts: dict[str, object]) -> None:
        self._books.journal.append(kind, self._about, facts)
