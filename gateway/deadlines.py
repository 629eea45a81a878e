"""When running requests must end: after the time that each may take, or all of them now."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guards.refusal import Ending


class Deadlines:
    """The deadline of every running request.

    total_s: what one request may take, all its legs together.
    """

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._running: dict[asyncio.Timeout, None] = {}  # in order, lest anything depend on where they lie in memory
        self._stopped = False

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A block that ends in time. Raises TimeoutError when it did not by itself; `verdict` then says why."""
        async with asyncio.timeout(0.0 if self._stopped else self._total_s) as timeout:
            self._running[timeout] = None
            try:
                yield
            finally:
                del self._running[timeout]

    def stop(self) -> None:
        """End every request, those that run and those to come: the gateway stops."""
        self._stopped = True
        now = asyncio.get_running_loop().time()
        for timeout in self._running:
            if not timeout.expired():
                timeout.reschedule(now)

    def verdict(self) -> tuple[Ending, str]:
        """How a request ended whose time is over, and what its client is told."""
        if self._stopped:
            return Ending.STOPPED, "The gateway is stopping, and this request took longer than it may wait."
        return Ending.TIMEOUT, f"This request took longer than {self._total_s:g} s, the limit here."
