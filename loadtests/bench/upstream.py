"""A vLLM as cheap as Python allows, to measure what stands before it:  python -m loadtests.bench.upstream FILE

The stub upstream says what a model would say; that costs more than what is measured here. This one says a number
and a time, in bytes made beforehand. The prompt orders: «tokens=200 every_us=50000», so that it passes any gateway.
Once it listens, FILE holds its port.
"""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import httptools
import uvloop

from loadtests.bench.words import MODEL, Words, words
from loadtests.stub_wire import answer

ORDER = re.compile(rb"tokens=(\d+) every_us=(\d+)")
IDS = re.compile(rb'"return_token_ids": ?true')
STREAM = re.compile(rb'"stream": ?true')
CARDS = b'{"object":"list","data":[{"id":"%b","object":"model","owned_by":"vllm","max_model_len":32768}]}'
BACKLOG = 16_384  # thousands of clients come at once

WITH_IDS, WITHOUT_IDS = words(ids=True), words(ids=False)


class Upstream(asyncio.Protocol):
    """One connection: one request at a time."""

    open = 0  # streams that are being said, of all connections

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._url, self._body = b"", b""
        self._words: Words | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._said = self._tokens = 0
        self._every_s = self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._over()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._parser.get_method() == b"GET":
            self._transport.write(answer(200, self._shown()))
            return
        said = WITH_IDS if IDS.search(body) else WITHOUT_IDS
        if STREAM.search(body) is None:
            self._transport.write(said.plain)
            return
        order = ORDER.search(body)
        self._tokens, every_us = map(int, order.groups()) if order is not None else (1, 0)
        self._words, self._said, self._every_s = said, 0, every_us / 1e6
        Upstream.open += 1
        self._transport.write(said.opening)
        self._due = self._loop.time()
        self._say()

    def _shown(self) -> bytes:
        if self._url == b"/v1/models":
            return CARDS % MODEL.encode()
        return b'{"open":%d}' % Upstream.open

    def _say(self) -> None:
        assert self._words is not None
        self._transport.write(self._words.at(self._said))
        self._said += 1
        if self._said == self._tokens:
            self._transport.write(self._words.closing)
            self._over()
            return
        self._due += self._every_s
        self._timer = self._loop.call_at(self._due, self._say)

    def _over(self) -> None:
        if self._words is not None:
            self._words = None
            Upstream.open -= 1


async def main(file: Path) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=BACKLOG)
    written = file.with_suffix(".new")
    written.write_text(str(server.sockets[0].getsockname()[1]))
    written.rename(file)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
