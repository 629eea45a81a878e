"""What clients are written within one turn of the event loop, sent in one go at its end.

A write is a system call through all of TCP, and it often wakes another process. Between two reads each of them finds
the processor's caches cold; one after the other they save a tenth of what a chunk costs (docs/performance.md).
"""

import asyncio
from collections.abc import Callable

import structlog

log = structlog.get_logger()

BYTES_MAX = 1 << 20  # that wait at once: with more there is nothing left to save


class Turn:
    """Keeps the order of what goes through it; who closes a transport, or writes to it directly, calls `end` first."""

    __slots__ = ("_bytes", "_loop", "_writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writes: list[tuple[asyncio.Transport, bytes, Callable[[], None] | None]] = []
        self._bytes = 0

    def write(self, transport: asyncio.Transport, data: bytes, then: Callable[[], None] | None = None) -> None:
        """Send bytes at the end of this turn. then: called once the transport has them."""
        if not self._writes:
            self._loop.call_soon(self.end)
        self._writes.append((transport, data, then))
        self._bytes += len(data)
        if self._bytes > BYTES_MAX:
            self.end()

    def end(self) -> None:
        """Send what waits, now. What was for a transport that was closed meanwhile is nobody's any more."""
        writes, self._writes, self._bytes = self._writes, [], 0
        for transport, data, then in writes:
            try:
                if not transport.is_closing():
                    transport.write(data)
                    if then is not None:
                        then()
            except Exception as fault:  # one client's: the others have theirs all the same
                log.error("turn.fault", error=repr(fault), exc_info=fault)
                transport.abort()
