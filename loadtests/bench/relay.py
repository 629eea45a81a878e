"""How little a gateway in Python can cost: no keys, no budget, no limits, nothing read. To compare with, not to use.

    python -m loadtests.bench.relay PORT UPSTREAM [aiohttp]

Bytes are pushed: what arrives from the upstream is written where it arrives, and no task is woken for it. The client's
side is a protocol with httptools; or, with `aiohttp`, that server, as Holdfast has it.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop
from aiohttp import web

BACKLOG = 16_384


class Answers(asyncio.Protocol):
    """One connection to the upstream, with one answer at a time.

    on_data: told all bytes as they come; on_end: whether that was all of them.
    """

    def __init__(self, pool: list["Answers"]) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._on_data: Callable[[bytes], None] | None = None
        self._on_end: Callable[[bool], None] | None = None

    def begin(self, request: bytes, on_data: Callable[[bytes], None], on_end: Callable[[bool], None]) -> None:
        """Send a request."""
        self._on_data, self._on_end = on_data, on_end
        self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._pool:
            self._pool.remove(self)
        self._over(whole=False)

    def data_received(self, data: bytes) -> None:
        if self._on_data is not None:
            self._on_data(data)
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._pool.append(self)
        self._over(whole=True)

    def _over(self, *, whole: bool) -> None:
        on_end, self._on_data, self._on_end = self._on_end, None, None
        if on_end is not None:
            on_end(whole)


class Upstream:
    """Where requests go. Connections are kept; as many as there are requests at once."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        self._host, self._port, self._pool = at.hostname or "", at.port or 80, list[Answers]()
        self._connecting: set[asyncio.Task[None]] = set()

    def ask(self, path: str, body: bytes, on_data: Callable[[bytes], None], on_end: Callable[[bool], None]) -> None:
        """Send one request."""
        head = f"POST {path} HTTP/1.1\r\nhost: vllm\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        request = head.encode() + b"\r\n\r\n" + body
        if self._pool:
            self._pool.pop().begin(request, on_data, on_end)
            return
        task = asyncio.create_task(self._connect(request, on_data, on_end))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, request: bytes, on_data: Callable[[bytes], None], on_end: Callable[[bool], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, answers = await loop.create_connection(lambda: Answers(self._pool), self._host, self._port)
        except OSError:
            on_end(False)
        else:
            answers.begin(request, on_data, on_end)


class Client(asyncio.Protocol):
    """One connection of a client, one request at a time. Its answer is passed on as it comes, its head included."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._url, self._parts = b"", list[bytes]()
        self.on_body = self._parts.append
        self._parser = httptools.HttpRequestParser(self)  # which asks for it now
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        body = b"".join(self._parts)
        self._parts.clear()
        self._upstream.ask(self._url.decode(), body, self._transport.write, self._ended)

    def _ended(self, whole: bool) -> None:
        if not whole:
            self._transport.close()


class Written(web.StreamResponse):
    """One that was written past aiohttp."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write no head."""
        self._req, self._eof_sent, self._keep_alive = request, True, True

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Write no end."""


async def main(port: int, url: str, *, server: str) -> None:
    """Serve until killed."""
    loop, upstream = asyncio.get_running_loop(), Upstream(url)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        over = loop.create_future()
        assert request.transport is not None
        upstream.ask(request.path, await request.read(), request.transport.write, over.set_result)
        if not await over:
            request.transport.close()
        return Written()

    if server == "aiohttp":
        runner = web.ServerRunner(web.Server(handle, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
    else:
        await loop.create_server(lambda: Client(upstream), "127.0.0.1", port, backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], server="".join(sys.argv[3:])))
