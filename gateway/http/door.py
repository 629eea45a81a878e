"""A listening port, and how it is shut: nobody new comes in, and those inside are seen out."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.http.connection import ClientLimits, Listener

BACKLOG = 4096  # connections that the kernel accepts for us while we are busy
LOOK_S = 0.02  # how often a door that is being cleared is looked at
TOLD_S = 1.0  # for handlers that were cancelled to end


class Door:
    """One port, from the moment that it listens."""

    def __init__(self, listener: Listener, server: asyncio.Server) -> None:
        self._listener, self._server = listener, server

    @classmethod
    async def open(
        cls,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        host: str,
        port: int,
        limits: ClientLimits,
        *,
        shared: bool = False,
    ) -> "Door":
        """Listen. shared: with other processes, each of which has its own clients. Raises OSError."""
        listener = Listener(handler, limits)
        loop = asyncio.get_running_loop()
        return cls(listener, await loop.create_server(listener, host, port, backlog=BACKLOG, reuse_port=shared or None))

    def shut(self) -> None:
        """Take no new connections. Load balancers go elsewhere at once when a port refuses; may be called again."""
        self._server.close()

    async def clear(self, within_s: float) -> None:
        """Let clients read what they were sent, for that long, then hang up on all of them."""
        self.shut()
        self._listener.pre_shutdown()  # those that ask for nothing
        await seen(lambda: not any(map(unread, self._listener.connections)), within_s)
        await self._listener.shutdown(TOLD_S)


def unread(connection: RequestHandler) -> bool:
    """Whether a client has yet to read some of what it was sent."""
    transport = connection.transport
    return transport is not None and transport.get_write_buffer_size() > 0


async def seen(condition: Callable[[], bool], within_s: float) -> None:
    """Wait until something is so, for that long at most; for the end of the process, where nothing is in a hurry."""
    until = time.monotonic() + within_s
    while not condition() and time.monotonic() < until:  # noqa: ASYNC110 - events for this would burden every request
        await asyncio.sleep(LOOK_S)
