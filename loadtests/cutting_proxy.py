"""A TCP proxy that cuts streams after exactly so many tokens: put it in front of a real vLLM.

    python -m loadtests.cutting_proxy --upstream 127.0.0.1:9001 --port 0 [--seed 7 --every 3]

Prints `listening on 127.0.0.1:PORT`, then one JSON line for every cut. Each line of JSON on stdin,
such as {"after_tokens": 5, "extra_bytes": 9, "how": "rst", "times": 2}, cuts the next streams so,
ahead of the seeded plan.
"""

import argparse
import asyncio
import fcntl
import json
import random
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

from loadtests.http_messages import BadMessage, MessageReader, Part
from loadtests.token_count import TokenCount

READ_BYTES = 64 << 10
REQUEST_BYTES_MAX = 8 << 20  # of a request that is kept for the plan to look at
CUTS_MAX = 10_000
FLUSH_S_MAX = 2.0
_RESET = struct.pack("ii", 1, 0)

How = Literal["rst", "fin", "stall"]


@dataclass(frozen=True)
class Cut:
    """Where to cut a stream: that many bytes behind the event that completes that many tokens.

    extra_bytes are raw, chunk framing included. A stream that ends earlier is not cut.
    """

    after_tokens: int
    extra_bytes: int = 0
    how: How = "rst"


@dataclass(frozen=True)
class CutMade:
    """A cut that happened: of which request, where; tokens are those in events that came whole."""

    number: int
    cut: Cut
    tokens: int
    body_bytes: int


# Asked for each answer that is an event stream: the proxy's running number of the request, from 0, and the
# request's bytes, head and body.
Plan = Callable[[int, bytes], Cut | None]


class CuttingProxy:
    """Listens on loopback, passes everything on, and cuts what the plan says."""

    def __init__(self, plan: Plan | None = None, on_cut: Callable[[CutMade], None] | None = None) -> None:
        self.plan: Plan = plan or (lambda number, request: None)
        self._on_cut = on_cut
        self.cuts: deque[CutMade] = deque(maxlen=CUTS_MAX)
        self.requests = 0
        self.made = asyncio.Condition()
        self._upstream = ("", 0)
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int, listen_port: int = 0) -> int:
        """Listen in front of an upstream; give the port."""
        self._upstream = (host, port)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", listen_port, backlog=1024)
        listening: int = self._server.sockets[0].getsockname()[1]
        return listening

    def lead(self, host: str, port: int) -> None:
        """Pass new connections on to another upstream, as if a server had been started anew at this address."""
        self._upstream = (host, port)

    async def stop(self) -> None:
        """Close every socket."""
        if self._server is not None:
            self._server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def record(self, made: CutMade) -> None:
        """Enter a cut and wake who waits on `made`."""
        if self._on_cut is not None:
            self._on_cut(made)
        async with self.made:
            self.cuts.append(made)
            self.made.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            await self._link(reader, writer)
        except asyncio.CancelledError:
            pass  # stopped: Python 3.11's streams would report the cancellation of a handler as an error
        finally:
            self._links.discard(link)
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            return
        requests: deque[tuple[int, bytes]] = deque()
        asking = asyncio.ensure_future(self._pass_requests(reader, up_writer, requests))
        answering = asyncio.ensure_future(self._pass_answers(up_reader, writer, requests))
        try:
            # Whichever side leaves first takes the other along.
            await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            answering.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            up_writer.transport.abort()
            with suppress(OSError):
                await _flushed(writer)

    async def _pass_requests(
        self, reader: asyncio.StreamReader, up: asyncio.StreamWriter, requests: deque[tuple[int, bytes]]
    ) -> None:
        messages = MessageReader(responses=False)
        kept = bytearray()
        with suppress(OSError, BadMessage):
            while data := await reader.read(READ_BYTES):
                for part, run in messages.feed(data):
                    if len(kept) < REQUEST_BYTES_MAX and part in (Part.HEAD, Part.BODY):
                        kept += run
                    if part is Part.END:
                        requests.append((self.requests, bytes(kept)))
                        self.requests += 1
                        kept.clear()
                up.write(data)
                await up.drain()

    async def _pass_answers(
        self, up: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: deque[tuple[int, bytes]]
    ) -> None:
        messages = MessageReader(responses=True)
        stream: _Stream | None = None
        with suppress(OSError, BadMessage):
            while data := await up.read(READ_BYTES):
                for part, run in messages.feed(data):
                    if part is Part.HEAD and run[9:10] != b"1":
                        stream = self._stream(run, requests)
                    elif stream is not None and (passed := stream.passing(part, run)) is not None:
                        return await self._cut(stream, writer, run[:passed])
                    if part is Part.END:
                        stream = None
                    writer.write(run)
                await writer.drain()

    def _stream(self, head: bytes, requests: deque[tuple[int, bytes]]) -> "_Stream | None":
        """Ask the plan about the answer that begins here."""
        number, request = requests.popleft() if requests else (-1, b"")
        if b"text/event-stream" not in head:
            return None
        cut = self.plan(number, request)
        return None if cut is None else _Stream(number, cut)

    async def _cut(self, stream: "_Stream", writer: asyncio.StreamWriter, last: bytes) -> None:
        writer.write(last)
        await _flushed(writer)
        made = CutMade(stream.number, stream.cut, stream.count.tokens, stream.body_bytes)
        if stream.cut.how == "rst":
            handle = writer.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        elif stream.cut.how == "fin":
            writer.close()
        await self.record(made)
        if stream.cut.how == "stall":
            await asyncio.get_running_loop().create_future()  # until the client leaves or the proxy stops


class _Stream:
    """One answer that is to be cut: counts until the place is reached."""

    def __init__(self, number: int, cut: Cut) -> None:
        self.number, self.cut = number, cut
        self.count = TokenCount()
        self.body_bytes = 0
        self._extra: int | None = cut.extra_bytes if cut.after_tokens <= 0 else None

    def passing(self, part: Part, run: bytes) -> int | None:
        """Take the next bytes; give how many of them may pass when the cut falls among them."""
        start = 0
        if self._extra is None and part is Part.BODY:
            reached = self.count.feed(run, self.cut.after_tokens)
            if reached is not None:
                self._extra, start = self.cut.extra_bytes, reached
        passed = len(run)
        if self._extra is not None:
            passed = min(len(run), start + self._extra)
            self._extra -= passed - start
        if part is Part.BODY:
            if start or self._extra is not None:
                self.count.feed(run[start:passed])
            self.body_bytes += passed
        return passed if self._extra == 0 and part is not Part.END else None


async def _flushed(writer: asyncio.StreamWriter) -> None:
    """Wait until the peer's kernel has all that was written: a reset would throw the rest away."""
    handle = writer.get_extra_info("socket")
    loop = asyncio.get_running_loop()
    until_s = loop.time() + FLUSH_S_MAX
    while loop.time() < until_s and not writer.transport.is_closing():
        unsent = struct.unpack("i", fcntl.ioctl(handle.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        if not unsent and not writer.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.0005)


def seeded_plan(rng: random.Random, every: int, tokens_max: int, extra_max: int) -> Plan:
    """Cut each `every`-th stream (0: none) at a place and in a way drawn from the generator."""
    ways: tuple[How, ...] = ("rst", "fin")

    def plan(number: int, request: bytes) -> Cut | None:
        cut = Cut(rng.randint(0, tokens_max), rng.randint(0, extra_max), rng.choice(ways))
        return cut if every and number % every == every - 1 else None

    return plan


async def _serve(given: argparse.Namespace) -> None:
    ordered: deque[Cut] = deque()
    seeded = seeded_plan(random.Random(given.seed), given.every, given.tokens_max, given.extra_max)
    proxy = CuttingProxy(
        lambda number, request: ordered.popleft() if ordered else seeded(number, request),
        lambda made: print(json.dumps(asdict(made)), flush=True),
    )
    host, port = given.upstream.rsplit(":", 1)
    print(f"listening on 127.0.0.1:{await proxy.start(host, int(port), given.port)}", flush=True)
    loop = asyncio.get_running_loop()

    def order() -> None:
        line = sys.stdin.readline()
        if line:
            wanted = json.loads(line)
            times = wanted.pop("times", 1)
            ordered.extend([Cut(**wanted)] * times)
        else:
            loop.remove_reader(sys.stdin)

    loop.add_reader(sys.stdin, order)
    await loop.create_future()


def main() -> None:
    """Serve what the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="HOST:PORT")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every", type=int, default=0, help="cut each K-th stream; 0: only what stdin says")
    parser.add_argument("--tokens-max", type=int, default=50)
    parser.add_argument("--extra-max", type=int, default=200)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
