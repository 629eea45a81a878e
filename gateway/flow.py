"""THE FLOW: what happens to a request, from its hold on a budget to its last byte.

    estimate → hold budget → route → leg ─events→ relay ─bytes→ client
                               ↑ leg lost: next leg ┘
    at the end, whatever the end: one Ending → settle → journal
"""

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.books.keys import Tenant
from gateway.fleet.replicas import Fleet
from gateway.quote import Quotes
from gateway.record import Record, Records
from gateway.stream.call import Call
from gateway.stream.plain import Plain, PlainPart
from gateway.stream.relay import Ask, Part, Relay, Sink
from gateway.stream.upstream import Leg, Target, Upstream
from guards.refusal import Ending

Headers = tuple[tuple[str, str], ...]


class Flow:
    """Serves requests. Everything it needs is built once, by `app`."""

    def __init__(
        self,
        quotes: Quotes,
        fleet: Fleet,
        upstream: Upstream,
        targets: dict[str, Target],
        records: Records,
        total_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.quotes, self.fleet, self.upstream, self.targets = quotes, fleet, upstream, targets
        self.records, self.total_s, self.clock = records, total_s, clock

    async def serve(self, call: Call, tenant: Tenant, sink: Sink, headers: Headers = ()) -> bytes | None:
        """Answer one request: a stream goes out through `sink`, a plain answer is returned.

        Raises Refused while nothing was delivered. However it ends (a finish, a cut, a client that
        left, a bug), the hold is settled once, at what was delivered.
        """
        with self.records.open(call, tenant, sink.received_at) as record:
            quote = await self.quotes.hold(call, tenant)
            async with quote.hold as hold:
                record.held(hold.meter.leased)
                relay: Relay | Plain = Plain(call, hold, quote.terms)
                if call.stream:
                    relay = Relay(call, sink, hold, quote.terms, self.clock, record.gaps)
                record.relay = relay
                try:
                    async with asyncio.timeout(self.total_s):
                        await self._legs(relay, sink, record, headers)
                except TimeoutError:
                    relay.fail(Ending.TIMEOUT, f"This request took longer than {self.total_s:g} s, the limit here.")
                await relay.finish()
        if relay.refusal is not None:
            raise relay.refusal
        return relay.body if isinstance(relay, Plain) else None

    async def _legs(self, relay: Relay | Plain, sink: Sink, record: Record, headers: Headers) -> None:
        """Ask one server after the other until the answer has ended; bounded by the relay's legs_max."""
        failed: frozenset[str] = frozenset()
        while relay.open:
            name = self.fleet.pick(relay.call.model, failed)
            if name is None:
                relay.fail(Ending.UPSTREAM_LOST, "No server of this model can be reached now.")
                return
            sink.from_replica(name, record.leg_opened(name))
            legs: list[tuple[Leg, Any]] = []
            try:
                for ask in await relay.asks():
                    legs.append(self._open(name, ask, relay.part(ask), headers))
                for leg, part in legs:
                    end = await leg.ended
                    lost = await relay.ended(part, end)
                    record.leg_ended(name, end, lost)
                    if lost:
                        failed |= {name}
                        self.fleet.suspect(name)
            finally:
                for leg, _ in legs:
                    leg.close()
                    self.fleet.leave(name)

    def _open(self, name: str, ask: Ask, part: Part | PlainPart, headers: Headers) -> tuple[Leg, Any]:
        self.fleet.enter(name)
        part.leg = leg = self.upstream.open(self.targets[name], ask.path, ask.body, part.receiver, headers)
        return leg, part
