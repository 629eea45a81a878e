"""THE FLOW of a request.

estimate → ease → hold budget → wait for a turn → route → leg ─events→ relay ─bytes→ client
at the end: settle once → journal                    ↑ leg lost: next leg ┘
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.books.tenants import Tenant
from gateway.deadlines import Deadlines, Expired
from gateway.fleet.replicas import Fleet
from gateway.legs import Headers, Legs, Names
from gateway.quote import Quotes
from gateway.rates import Rates
from gateway.record import Record, Records
from gateway.stream.call import Call
from gateway.stream.leg import Target
from gateway.stream.plain import Plain
from gateway.stream.relay import Relay
from gateway.stream.seams import Sink
from gateway.stream.upstream import Upstream
from gateway.turns import Turn, Turns


@dataclass(frozen=True)
class Flow:
    """Serves requests. Everything it needs is built once, by `app`."""

    rates: Rates
    quotes: Quotes
    turns: Turns
    fleet: Fleet
    upstream: Upstream
    targets: dict[str, Target]
    records: Records
    deadlines: Deadlines
    clock: Callable[[], float]

    async def serve(self, call: Call, tenant: Tenant, sink: Sink, headers: Headers = ()) -> bytes | None:
        """Answer one request: a stream through `sink`, else it is returned. Raises Refused while nothing was sent."""
        with self.records.open(call, tenant, sink) as record, self.rates.enter(call, tenant.rates) as passage:
            deadline = self.deadlines.of(call, tenant)
            eased = self.turns.ease(call, tenant, sink)
            quote = await self.quotes.hold(call, tenant, eased)
            with quote.hold as hold, quote.watch as watch, self.turns.one(call, tenant, sink, quote) as turn:
                sink.told = passage.headers + quote.headers + turn.headers
                record.held(hold, turn, quote.about)
                kind = Relay if call.stream else Plain
                answer = record.answer = kind(call, sink, hold, quote.terms, self.clock, record.gaps)
                try:
                    try:
                        with deadline.over(watch, turn.due):
                            await turn.begin(answer)
                            await self._legs(answer, sink, record, headers, turn)
                    except Expired as expired:
                        answer.fail(*expired.verdict)
                    await answer.finish()  # also then: a budget may have ended it, and its last words are owed
                finally:
                    answer.close()
                    passage.used = answer.prompt_tokens + answer.completion_tokens
        if answer.refusal is not None:
            raise answer.refusal
        return answer.body

    async def _legs(self, answer: Relay | Plain, sink: Sink, record: Record, headers: Headers, turn: Turn) -> None:
        """Ask one server after the other until the answer has ended; bounded by its legs_max and hedges_max."""
        failed: Names = frozenset()
        with Legs(self.fleet, self.upstream, self.targets, headers, turn) as legs:
            while answer.open:
                if answer.needs_leg:
                    name = legs.pick(failed, answer.way)
                    if name is None:
                        return answer.fail(*legs.nobody(answer))
                    sink.from_replica(name, record.leg_opened(name, *legs.bond(name, answer)))
                    legs.begin(name, await answer.asks(legs.continues(name)), answer.part)
                elif legs.silent:
                    await self._hedge(answer, sink, record, legs, failed)
                if answer.open:  # else there was nothing left to ask for, or no way to ask for it
                    await legs.news()
                while (ended := legs.take()) is not None:
                    running, end = ended
                    lost = await answer.ended(running.part, end)
                    record.leg_ended(running.replica, end, lost)
                    legs.ended(running, end, lost, delivered=answer.open and answer.delivered)
                    if lost:  # its siblings there go on elsewhere too
                        failed |= {running.replica}

    async def _hedge(self, answer: Relay | Plain, sink: Sink, record: Record, legs: Legs, avoid: Names) -> None:
        """Race silent legs on another server. They stay; whichever leg brings the next token wins."""
        name = self.fleet.second(
            answer.call.model, avoid | legs.replicas | legs.strangers(answer), answer.call.home
        )
        if name is None:
            return
        asks = await answer.hedges([one.part for one in legs.silent], legs.continues(name))
        asks = [ask for ask in asks if self.fleet.may_hedge()]
        for _ in asks:
            record.hedged(name, legs.bond(name, answer)[1])
        legs.begin(name, asks, lambda ask: answer.part(ask, lambda: sink.from_replica(name, record.hedge_won(name))))
