"""THE FLOW of a request.

estimate → hold budget → route → leg ─events→ relay ─bytes→ client
                           ↑ leg lost: next leg ┘
at the end, whatever the end: settle once → journal
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.books.keys import Tenant
from gateway.fleet.replicas import Fleet
from gateway.quote import Quotes
from gateway.record import Record, Records
from gateway.stream.call import Call
from gateway.stream.leg import Leg, Target
from gateway.stream.leg_end import LegEnd
from gateway.stream.plain import Plain
from gateway.stream.relay import Relay
from gateway.stream.seams import Sink
from gateway.stream.upstream import Upstream
from guards.refusal import Ending

Headers = tuple[tuple[str, str], ...]
Legs = dict[asyncio.Future[LegEnd], tuple[Leg, Any]]  # by their ends, with the part of the answer that each feeds


@dataclass(frozen=True)
class Flow:
    """Serves requests. Everything it needs is built once, by `app`. total_s: for one request, all its legs together."""

    quotes: Quotes
    fleet: Fleet
    upstream: Upstream
    targets: dict[str, Target]
    records: Records
    total_s: float
    clock: Callable[[], float]

    async def serve(self, call: Call, tenant: Tenant, sink: Sink, headers: Headers = ()) -> bytes | None:
        """Answer one request: a stream through `sink`, else it is returned. Raises Refused while nothing was delivered.

        However it ends, the hold is settled once, at what was delivered.
        """
        with self.records.open(call, tenant, sink) as record:
            quote = await self.quotes.hold(call, tenant)
            async with quote.hold as hold:
                record.held(hold.meter.leased)
                kind = Relay if call.stream else Plain
                answer = record.answer = kind(call, sink, hold, quote.terms, self.clock, record.gaps)
                try:
                    async with asyncio.timeout(self.total_s):
                        await self._legs(answer, sink, record, headers)
                except TimeoutError:
                    answer.fail(Ending.TIMEOUT, f"This request took longer than {self.total_s:g} s, the limit here.")
                else:
                    await answer.finish()
                finally:
                    answer.close()
        if answer.refusal is not None:
            raise answer.refusal
        return answer.body

    async def _legs(self, answer: Relay | Plain, sink: Sink, record: Record, headers: Headers) -> None:
        """Ask one server after the other until the answer has ended; bounded by its legs_max."""
        failed: frozenset[str] = frozenset()
        while answer.open:
            name = self.fleet.pick(answer.call.model, failed)
            if name is None:
                return answer.fail(Ending.UPSTREAM_LOST, "No server of this model can be reached now.")
            sink.from_replica(name, record.leg_opened(name))
            legs: Legs = {}
            try:
                for ask in await answer.asks():
                    part = answer.part(ask)
                    part.leg = leg = self.upstream.open(self.targets[name], ask.path, ask.body, part.receiver, headers)
                    legs[leg.ended] = leg, part
                    self.fleet.enter(name)
                if await self._ends(name, answer, legs, record):
                    failed |= {name}
                    self.fleet.suspect(name)
            finally:
                for leg, _ in legs.values():
                    leg.close()
                    self.fleet.leave(name)

    async def _ends(self, name: str, answer: Relay | Plain, legs: Legs, record: Record) -> bool:
        """Wait for legs to end; when one is lost, its siblings at that server are closed, to go on elsewhere too."""
        pending, any_lost = set(legs), False
        while pending:
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in ended:
                lost = await answer.ended(legs[future][1], future.result())
                record.leg_ended(name, future.result(), lost)
                any_lost |= lost
            for future in pending if any_lost else ():
                legs[future][0].close()
        return any_lost
