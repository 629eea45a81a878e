"""The HTTP client to vLLM: one leg is one upstream attempt.

An asyncio.Protocol with httptools and a keep-alive pool per replica. Bytes are handled where they
arrive, in `data_received`: no task is woken and no future made per chunk, which halves the cost of a
chunk against an `async for` over a response (docs: ARCHITECTURE.md, «push»).
No connection is used again after a cut, a protocol error, or an answer that was not read to its end.
"""

import asyncio
import errno
import re
import ssl
from collections import deque
from typing import cast

import httptools

from gateway.stream.leg import Leg, Receiver, Target, UpstreamLimits, Watch
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.silences import Silences

# No connection, and no fault of the server's: it must not pass for one that is gone.
OUR_WANTS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
GRACE_S = 0.02  # for a connection that may be there already when its time is over
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Connection(asyncio.Protocol):
    """One TCP connection to a replica, used for one leg at a time."""

    __slots__ = (
        "_between", "_chunk_over", "_content_type", "_head_bytes", "_headed", "_heard", "_kept_alive", "_parser",
        "_parts", "_reading", "_room", "_taken", "_upstream", "_whole", "idle_since", "leg", "on_body", "target",
        "transport", "used",
    )  # fmt: skip

    def __init__(self, upstream: "Upstream", target: Target) -> None:
        self._upstream, self.target = upstream, target
        self.transport: asyncio.Transport | None = None
        self.leg: Leg | None = None
        self.used = False  # answered a request before: its silence may be the server's idle timeout
        self.idle_since = 0.0
        self._parser: httptools.HttpResponseParser | None = None
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # for httptools, which asks for it once
        self._head_bytes = 0
        self._content_type = b""
        self._room = 0  # bytes that may still come before some of the body must have
        self._headed = False
        self._chunk_over = False  # the last chunk that began
        self._between = False  # two chunks of the body: nothing of the next one was read
        self._whole = False  # all of the answer was read
        self._taken = False  # and taken in: nothing in it was against the protocol
        self._kept_alive = False  # the server keeps the connection after this answer
        self._heard = False
        self._reading = True

    def send(self, leg: Leg) -> None:
        """Begin a leg on this connection."""
        self.leg, leg.connection = leg, self
        self._parts.clear()
        self._head_bytes, self._content_type = 0, b""
        if self._parser is None:  # it goes on to the next answer by itself
            self._parser = httptools.HttpResponseParser(self)
        self._room = self._upstream.limits.head_bytes
        self._headed = self._whole = self._taken = self._heard = self._between = self._chunk_over = False
        assert self.transport is not None
        self.transport.write(leg.request)
        if leg.paused:
            self.pause()

    @property
    def reusable(self) -> bool:
        assert self.transport is not None
        return self._taken and self._kept_alive and not self.transport.is_closing()

    def pause(self) -> None:
        if self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()
        if self._whole and self.leg is not None:
            self._complete(self.leg)  # all of it was read before the pause

    def abort(self) -> None:
        self.leg = None
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        leg, parser = self.leg, self._parser
        if leg is None or parser is None:
            self._upstream.forget(self)  # bytes that nobody asked for
            self.abort()
            return
        if not self._heard:
            self._heard = True
            leg.request = b""  # it will not be sent again
        if self._between and (body := whole_chunk(data)) is not None:
            leg.data(body)  # the parser need not know: it is between two chunks before and after
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Unexpected):
            self._kept_alive = False
            leg.end(LegEnd(Cause.PROTOCOL, "the server does not speak HTTP as expected"))
            return
        self._between = self._chunk_over and data.endswith(b"\r\n")  # and no further than that
        if self._parts and self.leg is leg:
            body = b"".join(self._parts)
            self._parts.clear()
            self._room = self._upstream.limits.head_bytes
            leg.data(body)
        elif not self._whole:
            self._room -= len(data)
            if self._room < 0:
                leg.end(LegEnd(Cause.PROTOCOL, "the server sends a head or a framing without an end"))
                return
        if self._whole and self.leg is leg and not leg.paused:
            self._complete(leg)

    def _complete(self, leg: Leg) -> None:
        self._taken = True
        leg.complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.forget(self)
        self._parser = None  # which holds our methods: together they would wait for the collector
        if self._whole and self.leg is not None and self.leg.paused:
            return  # all of it was read; it completes when it is resumed
        leg, self.leg = self.leg, None
        if leg is None or leg.over:
            return
        if self.used and not self._heard:
            self._upstream.connect(leg)  # a kept-alive connection that the server had closed: not an attempt
        else:
            leg.end(LegEnd(Cause.BROKEN, "its connection ended in mid-answer"))

    # -- httptools

    def on_message_begin(self) -> None:
        if self._whole:
            raise Unexpected  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._upstream.limits.head_bytes:
            raise Unexpected
        if name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        assert self.leg is not None
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            raise Unexpected
        status = self._parser.get_status_code()
        self._headed = status >= 200  # what is below only announces the answer
        if self._headed:
            self.leg.begin(status, self._content_type)

    def on_chunk_header(self) -> None:
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        self._chunk_over = True

    def on_message_complete(self) -> None:
        self._chunk_over = False
        assert self._parser is not None
        if not self._headed:
            return
        self._whole = True
        self._kept_alive = self._parser.should_keep_alive()  # known only now: afterwards it always says no


def whole_chunk(data: bytes) -> bytes | None:
    """What is in a chunk of a chunked body, where the data is one and no more, its size as
    servers usually write it; the last, which is empty, is none."""
    size, _, rest = data.partition(b"\r\n")
    body = rest[:-2]
    return body if body and size == b"%x" % len(body) and rest.endswith(b"\r\n") else None


class Unexpected(Exception):
    """More head than one answer may have, another HTTP, or a second answer."""


class Upstream:
    """Legs to any replica, over pooled connections."""

    def __init__(self, limits: UpstreamLimits) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.silences = Silences(self.loop)
        self._idle: dict[str, deque[Connection]] = {}
        self._legs: dict[str, dict[Leg, None]] = {}  # in order, lest anything depend on where they lie in memory
        self._tls = ssl.create_default_context()
        self._connecting: set[asyncio.Task[None]] = set()
        self._heads: dict[tuple[str, str, bool], str] = {}  # of requests, less what differs; paths are our own

    def open(
        self,
        target: Target,
        path: str,
        body: bytes | None,
        receiver: Receiver | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        watch: Watch | None = None,
    ) -> Leg:
        """Begin a leg; POST where there is a body, else GET. Whatever happens then is in `ended`.

        Raises ValueError for a header that cannot be one: a bug of whoever let it in.
        """
        leg = Leg(self, target, self._request(target, path, body, headers), receiver, watch)
        legs = self._legs.get(target.name)
        if legs is None:
            legs = self._legs[target.name] = {}
        legs[leg] = None
        idle = self._idle.get(target.name)
        while idle:
            connection = idle.pop()
            fresh = self.loop.time() - connection.idle_since < self.limits.idle_s
            if fresh and connection.transport is not None and not connection.transport.is_closing():
                connection.send(leg)
                return leg
            connection.abort()
        self.connect(leg)
        return leg

    async def fetch(
        self,
        target: Target,
        path: str,
        body: bytes | None = None,
        timeout_s: float = 5.0,
        bytes_max: int | None = None,
    ) -> LegEnd:
        """Ask for a small plain answer: a probe, /tokenize, /v1/models. bytes_max: of it, below that of all answers."""
        leg = self.open(target, path, body)
        if bytes_max is not None:
            leg.bytes_max = min(leg.bytes_max, bytes_max)
        try:
            async with asyncio.timeout(timeout_s):
                return await leg.ended
        except TimeoutError:
            return LegEnd(Cause.SILENT, f"no answer within {timeout_s:g} s")
        finally:
            leg.close()

    def connect(self, leg: Leg) -> None:
        """Open a new connection for a leg."""
        task = self.loop.create_task(self._connect(leg))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def streams(self, name: str) -> list[Leg]:
        """The legs of a replica that bring streams now, the oldest first."""
        return [leg for leg in self._legs.get(name, ()) if leg.receiver is not None]

    def plain(self, name: str) -> list[Leg]:
        """Those that bring plain answers to clients. Whoever asks small questions waits for their ends otherwise."""
        return [leg for leg in self._legs.get(name, ()) if leg.receiver is None and leg.on_end is not None]

    def abandon(self, name: str, *, streams: bool = True) -> None:
        """A replica was found dead: end all its legs now, rather than when each socket notices.

        streams: also those that bring tokens; they show by themselves whether their server lives.
        """
        for leg in [leg for leg in self._legs.get(name, ()) if streams or leg.receiver is None]:
            leg.end(LegEnd(Cause.ABANDONED, "its server was found dead"))
        for connection in self._idle.pop(name, ()):
            connection.abort()

    def released(self, leg: Leg) -> None:
        """A leg has ended: keep its connection if its answer was read to the end, else close it."""
        self._legs[leg.target.name].pop(leg, None)
        connection, leg.connection = leg.connection, None
        if not isinstance(connection, Connection):
            return
        if not connection.reusable:
            connection.abort()
            return
        connection.leg, connection.used, connection.idle_since = None, True, self.loop.time()
        connection.resume()
        idle = self._idle.get(leg.target.name)
        if idle is None:
            idle = self._idle[leg.target.name] = deque()
        idle.append(connection)
        now = self.loop.time()  # the oldest is on the left, and the last to be used again: it would stay for good
        while idle and (len(idle) > self.limits.idle_connections or now - idle[0].idle_since > self.limits.idle_s):
            idle.popleft().abort()

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        idle = self._idle.get(connection.target.name)
        if idle is not None and connection in idle:
            idle.remove(connection)

    async def close(self) -> None:
        """End every leg and connection."""
        for name in list(self._legs):
            self.abandon(name)
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _request(self, target: Target, path: str, body: bytes | None, headers: tuple[tuple[str, str], ...]) -> bytes:
        """Write a request. Header values were checked by whoever let them in; checked again here."""
        posts = body is not None
        head = self._heads.get((target.name, path, posts))
        if head is None:
            head = self._heads[target.name, path, posts] = _head(target, path, posts)
        if body is not None:
            head += f"\r\ncontent-length: {len(body)}"
        for name, value in headers:
            if CONTROL.search(name) or CONTROL.search(value):
                raise ValueError("a header holds a line break or another control character")
            head += f"\r\n{name}: {value}"
        return head.encode("latin-1") + b"\r\n\r\n" + (body or b"")

    async def _connect(self, leg: Leg) -> None:
        target = leg.target
        connection = Connection(self, target)
        connecting = self.loop.create_task(
            self.loop.create_connection(
                lambda: connection, target.host, target.port, ssl=self._tls if target.tls else None
            )
        )
        try:
            done, _ = await asyncio.wait((connecting,), timeout=self.limits.connect_s)
            if not done:  # or this process has stood still, and nobody has looked yet
                done, _ = await asyncio.wait((connecting,), timeout=GRACE_S)
            if not done:
                raise TimeoutError
            connecting.result()
        except TimeoutError:
            leg.end(LegEnd(Cause.SILENT, f"it took no connection within {self.limits.connect_s:g} s"))
            return
        except (OSError, UnicodeError) as error:  # a name that cannot be one, such as a..b, is a UnicodeError
            if isinstance(error, OSError) and error.errno in OUR_WANTS:
                leg.end(LegEnd(Cause.SILENT, "this gateway had nothing left to connect with"))
            else:
                leg.end(LegEnd(Cause.UNREACHED, "it could not be reached"))
            return
        except Exception as error:
            leg.fault(error)
            return
        finally:
            connecting.cancel()
        if leg.over:
            connection.abort()
        elif connection.transport is None or connection.transport.is_closing():  # before this task had its turn
            leg.end(LegEnd(Cause.UNREACHED, "it could not be reached"))
        else:
            connection.send(leg)


def _head(target: Target, path: str, posts: bool) -> str:
    """Write the part of a request's head that is the same each time."""
    lines = [f"{'POST' if posts else 'GET'} {path} HTTP/1.1", f"host: {target.host}:{target.port}"]
    if posts:
        lines.append("content-type: application/json")
    if target.key is not None:
        lines.append(f"authorization: Bearer {target.key}")
    if CONTROL.search("".join(lines)):
        raise ValueError("a header holds a line break or another control character")
    return "\r\n".join(lines)
