"""The orderly end: nobody new, those inside finish or are told, nobody is waited for beyond a deadline."""

import asyncio
import time

import structlog

from gateway.deadlines import Deadlines
from gateway.http.door import Door, seen
from gateway.http.edge import Edge

log = structlog.get_logger()

END_S = 1.0  # for requests whose time is over to tell their clients and settle


class Drain:
    """What happens between the signal and the end.

    drain_s: what running requests have to come to an end by themselves, in seconds.
    hurry: set, that time is over.
    begun: whether the end has begun.
    """

    def __init__(self, deadlines: Deadlines, drain_s: float, hurry: asyncio.Event) -> None:
        self._deadlines, self._drain_s, self._hurry = deadlines, drain_s, hurry
        self.begun = False

    async def run(self, edge: Edge, door: Door) -> None:
        """Refuse what is new, wait for what runs, end what is left of it; then nobody is inside any more.

        1. The port refuses connections and /readyz says no: load balancers go elsewhere. Connections that are open
           stay so, and a request on them is refused and told to close.
        2. Streams and plain answers go on, until the deadline or a second signal.
        3. Those left end with an error event, or a 503 where nothing was delivered, and are settled.
        """
        self.begun = True
        until = time.monotonic() + self._drain_s
        log.info("gateway.stopping", in_flight=edge.in_flight, drain_s=self._drain_s)
        door.shut()
        edge.stop()
        await seen(lambda: not edge.in_flight or self._hurry.is_set(), self._drain_s)
        if edge.in_flight:
            log.warning("gateway.ending_requests", in_flight=edge.in_flight, asked_twice=self._hurry.is_set())
            self._deadlines.stop()
            self._hurry.set()
            await seen(lambda: not edge.in_flight, END_S)
        await door.clear(0.0 if self._hurry.is_set() else until - time.monotonic())
        log.info("gateway.stopped")
