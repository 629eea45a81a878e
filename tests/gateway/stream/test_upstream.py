"""The HTTP client to vLLM, against small servers on loopback that do as each test says."""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.stream.leg import Target, UpstreamLimits
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.upstream import Connection, Upstream

TEST_S_MAX = 30
LOOP = ("create_task", "create_future", "call_later", "time")  # what the client uses of an event loop
LIMITS = {"connect_s": 2.0, "first_token_s": 5.0, "between_tokens_s": 5.0}
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'f\r\ndata: {"a":1}\n\n\r\n'
END = b"0\r\n\r\n"
Handler = Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def plain(body: bytes = b"{}", status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status, more, len(body), body,
    )  # fmt: skip


class Server:
    """Counts its connections and keeps every request's head and body."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.requests: list[bytes] = []
        self.closed = asyncio.Event()  # a client hung up while it was being answered
        self.open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
        self.requests.append(head + body)
        return head + body

    async def until_left(self, reader: asyncio.StreamReader) -> None:
        """Wait until the client hangs up."""
        assert await reader.read() == b""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            await self._handler(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            writer.close()


@asynccontextmanager
async def serving(handler: Handler, key: str | None = None, **limits: float):
    """A server, a client, and the target between them. Whoever waits in vain in it fails."""
    server = Server(handler)
    listener = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    upstream = Upstream(UpstreamLimits(**LIMITS | limits))
    try:
        async with asyncio.timeout(TEST_S_MAX):
            yield server, upstream, Target("one", "127.0.0.1", server.port, key=key)
    finally:
        await upstream.close()
        listener.close()
        for writer in server.open:
            writer.transport.abort()


def always(answer: bytes, *, then_close: bool = False) -> Handler:
    """A handler that gives every request this answer."""

    async def handle(server, reader, writer):
        while True:
            await server.request(reader)
            writer.write(answer)
            if then_close:
                return

    return handle


class Receiver:
    """Gathers events; `then` is called with the events so far."""

    def __init__(self, then=lambda events: None) -> None:
        self.got: list[bytes] = []
        self.some = asyncio.Event()
        self._then = then

    def events(self, raws: list[bytes]) -> None:
        self.got += raws
        self.some.set()
        self._then(self.got)


async def settled() -> None:
    """Let what is on its way on loopback arrive."""
    await asyncio.sleep(0.02)


# -------------------------------------------------------------------- requests


async def test_a_request_is_written_with_its_key_and_headers():
    """Method, path, host, length, the replica's key and the given headers go up; a request without a body is a GET."""
    async with serving(always(plain(b"yes")), key="secret") as (server, upstream, target):
        end = await upstream.open(target, "/v1/x", b'{"a":1}', headers=(("traceparent", "00-1"),)).ended
        await upstream.fetch(target, "/health")

    assert (end.cause, end.status, end.body) == (Cause.DONE, 200, b"yes")
    assert server.requests == [
        b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
        b'authorization: Bearer secret\r\ncontent-length: 7\r\ntraceparent: 00-1\r\n\r\n{"a":1}' % server.port,
        b"GET /health HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer secret\r\n\r\n" % server.port,
    ]


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nx: y", "a\rb", "a\0b", "a\x7f", "\u4e2d"])
async def test_a_header_that_cannot_be_one_is_refused(value):
    """A control character in a header, or what is not latin-1, is never written, and no leg is left behind."""
    what = "control character|can't encode"
    async with serving(always(plain())) as (server, upstream, target):
        with pytest.raises(ValueError, match=what):
            upstream.open(target, "/", b"", headers=(("x", value),))
        with pytest.raises(ValueError, match=what):
            upstream.open(target, f"/{value}", None)

    assert server.requests == []


async def test_a_request_is_kept_only_until_its_answer_begins():
    """It may have to be sent again on a fresh connection, but not once the server has answered a byte."""
    async with serving(always(SSE + EVENT)) as (_, upstream, target):
        receiver = Receiver()
        leg = upstream.open(target, "/", b"{}", receiver)
        before = leg.request
        await receiver.some.wait()

        assert (before.endswith(b"{}"), leg.request) == (True, b"")


# -------------------------------------------------------------------- the pool


async def test_connections_are_kept_and_used_again():
    """One request after the other needs one connection; two at once need two, and no more afterwards."""
    async with serving(always(plain())) as (server, upstream, target):
        for _ in range(5):
            await upstream.fetch(target, "/")
        one = server.connections
        await asyncio.gather(upstream.fetch(target, "/"), upstream.fetch(target, "/"))
        await asyncio.gather(upstream.fetch(target, "/"), upstream.fetch(target, "/"))

        assert (one, server.connections, len(server.requests)) == (1, 2, 9)


async def test_no_more_connections_are_kept_than_allowed():
    """Idle connections per replica are bounded; the oldest is closed."""
    async with serving(always(plain()), idle_connections=1) as (server, upstream, target):
        await asyncio.gather(*(upstream.fetch(target, "/") for _ in range(3)))

        assert (server.connections, len(upstream._idle["one"])) == (3, 1)


async def test_connections_that_idle_too_long_are_closed():
    """Those that a burst has left behind do not stay open for as long as others are used."""
    async with serving(always(plain()), idle_s=4) as (server, upstream, target):
        await asyncio.gather(*(upstream.fetch(target, "/") for _ in range(3)))
        oldest, older, last = upstream._idle["one"]
        oldest.idle_since -= 5
        older.idle_since -= 5

        await upstream.fetch(target, "/")

        assert list(upstream._idle["one"]) == [last]
        assert server.connections == 3


async def test_a_connection_that_idled_too_long_is_not_used_again():
    """Beyond idle_s the server may close it any moment: a fresh one is opened."""
    async with serving(always(plain()), idle_s=0.0) as (server, upstream, target):
        await upstream.fetch(target, "/")
        await upstream.fetch(target, "/")

        assert server.connections == 2


async def test_a_stale_connection_is_replaced_without_losing_the_request():
    """A kept connection that the server closes on the next request costs a reconnect, not an attempt."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(plain())
        if server.connections == 1:
            await server.request(reader)  # and hang up instead of an answer
            return
        await server.until_left(reader)

    async with serving(handle) as (server, upstream, target):
        await upstream.fetch(target, "/")
        end = await upstream.open(target, "/", b"{}").ended

        assert (end.cause, server.connections) == (Cause.DONE, 2)


async def test_a_fresh_connection_that_breaks_is_not_tried_again():
    """A server that hangs up on a fresh connection has been asked once."""

    async def handle(server, reader, writer):
        await server.request(reader)

    async with serving(handle) as (server, upstream, target):
        end = await upstream.open(target, "/", b"{}").ended

        assert (end.cause, server.connections) == (Cause.BROKEN, 1)


async def test_a_stale_connection_is_replaced_only_once():
    """When the fresh connection breaks too, the leg ends."""

    async def handle(server, reader, writer):
        await server.request(reader)
        if server.connections == 1:
            writer.write(plain())
            await server.request(reader)

    async with serving(handle) as (server, upstream, target):
        await upstream.fetch(target, "/")
        end = await upstream.open(target, "/", b"{}").ended

        assert (end.cause, server.connections) == (Cause.BROKEN, 2)


async def test_an_answer_that_began_is_not_asked_for_again():
    """A kept connection that breaks after the first byte of its answer is a lost leg."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(plain())
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")

    async with serving(handle) as (server, upstream, target):
        await upstream.fetch(target, "/")
        end = await upstream.open(target, "/", b"{}").ended

        assert (end.cause, server.connections) == (Cause.BROKEN, 1)


@pytest.mark.parametrize("more", [b"connection: close\r\n", b""])
async def test_a_server_that_says_close_is_believed(more):
    """A connection is kept only when the server keeps it."""
    async with serving(always(plain(more=more))) as (server, upstream, target):
        await upstream.fetch(target, "/")
        await upstream.fetch(target, "/")

        assert server.connections == (2 if more else 1)


async def test_a_connection_whose_answer_was_not_read_is_closed():
    """A leg that is closed in mid-answer closes its connection, and the next request opens another."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(SSE + EVENT)
        await server.until_left(reader)

    async with serving(handle) as (server, upstream, target):
        receiver = Receiver()
        leg = upstream.open(target, "/", b"{}", receiver)
        await receiver.some.wait()
        leg.close()
        await server.closed.wait()

        assert (await leg.ended).cause is Cause.CLOSED
        assert upstream._idle == {}


LEFT = {
    "two answers": plain() + plain(),
    "bytes after the end": SSE + EVENT + END + b"x",
    "a chunk that is none": SSE + EVENT + b"zz\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxx",
    "connection: close": plain(more=b"connection: close\r\n"),
    "HTTP/1.0": plain().replace(b"1.1", b"1.0"),
    "a wrong kind of answer, unfinished": plain(b"{}", b"302 No").replace(b"length: 2", b"length: 3"),
    "an event too long": SSE + b"ff\r\n" + b"x" * 255 + b"\r\n" + END,
}


@pytest.mark.parametrize("name", LEFT)
async def test_no_connection_is_used_again_after(name):
    """A cut, a protocol error, a server that closes, an answer that was not read: the next request has its own."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(LEFT[name] if server.connections == 1 else plain(b"fresh"))
        if name.endswith("unfinished"):
            await settled()
            return
        await server.until_left(reader)

    async with serving(handle, event_bytes=200) as (server, upstream, target):
        await upstream.open(target, "/", b"{}", Receiver()).ended
        await settled()
        end = await upstream.fetch(target, "/")

        assert (end.body, server.connections) == (b"fresh", 2)


async def test_bytes_that_nobody_asked_for_close_an_idle_connection():
    """A server that talks on a kept connection is not asked on it again."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(plain())
        await asyncio.sleep(0.005)
        writer.write(plain(b"more"))
        await server.until_left(reader)

    async with serving(handle) as (server, upstream, target):
        await upstream.fetch(target, "/")
        await server.closed.wait()

        assert not upstream._idle["one"]
        assert (await upstream.fetch(target, "/")).body == b"{}"


# -------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("status", "cause"),
    [(b"400 No", Cause.REFUSED), (b"401 No", Cause.REFUSED), (b"500 No", Cause.FAILED), (b"503 No", Cause.FAILED),
     (b"302 No", Cause.PROTOCOL), (b"204 No", Cause.PROTOCOL)],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
async def test_a_status_decides_how_a_leg_ends(status, cause, stream):
    """4xx is the request's or the key's, 5xx the server's, anything else was not asked for; the body is kept."""
    body = b"" if status.startswith(b"204") else b'{"error":{}}'
    async with serving(always(plain(body, status))) as (_, upstream, target):
        end = await upstream.open(target, "/", b"{}", Receiver() if stream else None).ended

    assert (end.cause, end.status) == (cause, int(status[:3]))
    assert end.body == (body if cause is not Cause.PROTOCOL else b"")


async def test_a_stream_that_is_no_stream_is_not_taken():
    """JSON where events were asked for is no answer."""
    receiver = Receiver()
    async with serving(always(plain(b'data: {"a":1}\n\n'))) as (_, upstream, target):
        end = await upstream.open(target, "/", b"{}", receiver).ended

    assert (end.cause, receiver.got) == (Cause.PROTOCOL, [])


async def test_any_chunking_of_an_answer_is_the_same_answer():
    """Cut at every byte, an answer brings the same events and leaves a connection that can be used again."""
    answer = SSE + EVENT + b"d\r\n: a comment\n\n\r\n" + EVENT + END

    async def handle(server, reader, writer):
        while True:
            cut = int((await server.request(reader)).split()[1][1:])
            writer.write(answer[:cut])
            await writer.drain()
            await asyncio.sleep(0.0005)
            writer.write(answer[cut:])

    async with serving(handle) as (server, upstream, target):
        for cut in range(len(answer)):
            receiver = Receiver()
            end = await upstream.open(target, f"/{cut}", b"{}", receiver).ended
            assert (end.cause, receiver.got) == (Cause.DONE, [b'data: {"a":1}'] * 2)

        assert server.connections == 1


PIECES = st.lists(
    st.sampled_from([EVENT, EVENT + EVENT, b"d\r\n: a comment\n\n\r\n", b"5;x=1\r\n1\r\n22\r\n"]), max_size=8
)
NO_CHUNKS = (b"", b"0x5\r\nhello\r\n", b"5\r\nhello!\r\n", b"+5\r\nhello\r\n")
CUTS = st.lists(st.integers(0, 400), max_size=6)


@example([EVENT, b"1f\r\n%b\r\n%b\r\n" % (b"a" * 15, b"b" * 14)], [20, 21, 41], False, b"")  # a size in two halves
@example([EVENT, b"a\r\n5\r\n12345\r\n\r\n"], [20, 23, 33], False, b"")  # a chunk that holds what looks like one
@given(PIECES, CUTS, st.booleans(), st.sampled_from(NO_CHUNKS))
def test_chunks_that_come_alone_are_read_as_the_parser_would(pieces, cuts, chunkwise, wrong):
    """Whether reads end with chunks or within them; and what is no chunk is found after any of them."""
    body = b"".join(pieces) + wrong + END
    marks = sorted({0, *(min(cut, len(body)) for cut in cuts), len(body)})
    reads = [*pieces, wrong + END] if chunkwise else [body[begin:end] for begin, end in pairwise(marks)]
    got: list[bytes] = []
    ends: list[LegEnd] = []
    leg = SimpleNamespace(paused=False, begin=lambda *said: None, data=got.append, complete=bool, end=ends.append)
    connection = Connection(SimpleNamespace(limits=UpstreamLimits()), Target("one", "127.0.0.1", 1))
    connection.transport, leg.request = SimpleNamespace(write=len), b""
    connection.send(leg)

    for read in [SSE, *reads]:
        if not ends:
            connection.data_received(read)

    expected = SimpleNamespace(parts=[])
    expected.on_body = expected.parts.append
    with suppress(httptools.HttpParserError):
        httptools.HttpResponseParser(expected).feed_data(SSE + body)
    assert b"".join(expected.parts).startswith(b"".join(got))
    assert wrong or len(b"".join(got)) == len(b"".join(expected.parts))
    assert bool(ends) == bool(wrong)


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", plain() + plain(), SSE + EVENT + END + b"HTTP/1.1 200 OK\r\n", SSE + b"zz\r\n",
     b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxx"],
    ids=["nonsense", "two answers", "more than one", "a bad chunk", "an upgrade"],
)  # fmt: skip
async def test_a_server_that_does_not_speak_http_as_expected_is_left(answer):
    """What is no answer, or more than one, ends the leg, and its connection is closed."""
    async with serving(always(answer)) as (server, upstream, target):
        end = await upstream.open(target, "/", b"{}", Receiver()).ended
        await server.closed.wait()

        assert end.cause is Cause.PROTOCOL
        assert not upstream._idle.get("one")


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [OK + b"x: a\nb: c", OK + b"x: a\rb", OK + b"x: a\0b", OK + b"x\0: b", OK + b" x: y", OK + b"x : y", OK + b"x",
     OK + b"content-length: 2\r\ncontent-length: 3", OK + b"content-length: -1", OK + b"content-length: 1" + b"0" * 30,
     OK + b"content-length: 2\r\ntransfer-encoding: chunked", b"HTTP/1.1 200 OK\nx: y\n",
     b"HTTP/1.1 2000 OK", b"HTTP/1.1 -20 OK", b"HTTP/1.1 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"ICY 200 OK",
     b"\x16\x03\x01\0\0", b"SSH-2.0-x"],
)  # fmt: skip
async def test_a_head_that_is_none_is_left(head):
    """Bare or stray line breaks, NUL, folded lines, ambiguous lengths and odd status lines are no answer."""
    async with serving(always(head + b"\r\n\r\n")) as (server, upstream, target):
        end = await upstream.open(target, "/", b"{}").ended
        await server.closed.wait()

        assert end.cause is Cause.PROTOCOL
        assert not upstream._idle.get("one")


async def test_answers_that_are_announced_are_waited_for():
    """100 and 103 before the answer are read past, and the connection is kept."""
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with serving(always(early + SSE + EVENT + END)) as (server, upstream, target):
        for _ in range(2):
            receiver = Receiver()
            end = await upstream.open(target, "/", b"{}", receiver).ended
            assert (end.cause, end.status, len(receiver.got)) == (Cause.DONE, 200, 1)

        assert server.connections == 1


async def test_an_http_1_0_answer_without_a_length_is_broken():
    """What ends with its connection cannot be told from what was cut."""
    answer = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n"
    async with serving(always(answer, then_close=True)) as (_, upstream, target):
        assert (await upstream.open(target, "/", b"{}", Receiver()).ended).cause is Cause.BROKEN


async def test_framing_may_be_more_than_the_bound_where_a_body_comes_with_it():
    """What is no body is counted from the last of the body: a long stream in small chunks is none of it."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(SSE)
        for _ in range(60):
            for part in (b"000f;x", b"=yyyyyyyyyyyyyyyyyyyyyyy\r\n", EVENT[3:]):
                writer.write(part)
                await asyncio.sleep(0.0005)
        writer.write(END)
        await server.until_left(reader)

    async with serving(handle, head_bytes=200) as (_, upstream, target):
        receiver = Receiver()
        end = await upstream.open(target, "/", b"{}", receiver).ended

    assert (end.cause, len(receiver.got)) == (Cause.DONE, 60)


ENDLESS = {
    "announcements": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "announced headers": (b"", b"HTTP/1.1 103 Early\r\nx: y\r\n\r\n"),
    "line breaks": (b"", b"\r\n"),
    "a status line": (b"HTTP/1.1 200 ", b"O"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "a header": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "a chunk's extension": (SSE + EVENT + b"f;", b"x"),
    "a chunk's size": (SSE + EVENT, b"0"),
    "trailers": (SSE + EVENT + b"0\r\n", b"x: y\r\n"),
    "a trailer": (SSE + EVENT + b"0\r\nx: ", b"y"),
}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("pieces", [1, 1000])
@pytest.mark.parametrize("name", ENDLESS)
async def test_what_is_no_body_is_bounded(name, pieces, streamed):
    """Heads and framing without an end, fast or by drips, end the leg after some kilobytes, also of a plain answer."""
    begin, again = ENDLESS[name]
    written = 0

    async def handle(server, reader, writer):
        nonlocal written
        await server.request(reader)
        writer.write(begin if streamed else begin.replace(b"text/event-stream", b"application/json"))
        while True:
            writer.write(again * pieces)
            written += len(again) * pieces
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(handle, head_bytes=2000) as (_, upstream, target):
        end = await upstream.open(target, "/", b"{}", Receiver() if streamed else None).ended

    assert end.cause is Cause.PROTOCOL
    assert written < 16 << 20  # what sockets hold, and no more


@pytest.mark.parametrize(
    "head",
    [b"x: " + b"y" * 5000, b"x: y\r\n" * 1000, b"x" * 5000, b"x: yyyy\r\n" * 1000 + b"content-length: 0\r\n\r\n"],
    ids=["a value without an end", "many headers", "a name without an end", "too many, but whole"],
)
async def test_a_head_beyond_its_bound_is_not_gathered(head):
    """A server that sends more head than one answer may have is left, also when it never ends a line."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + head)
        await server.until_left(reader)

    async with serving(handle, head_bytes=4096) as (_, upstream, target):
        end = await upstream.open(target, "/", b"{}").ended

    assert end.cause is Cause.PROTOCOL


async def test_a_plain_answer_beyond_its_bound_is_not_gathered():
    """A body that grows beyond its limit ends the leg."""
    async with serving(always(plain(b"x" * 5001)), answer_bytes=5000) as (_, upstream, target):
        assert (await upstream.open(target, "/", b"{}").ended).cause is Cause.PROTOCOL


@pytest.mark.parametrize(("bytes_max", "cause"), [(100, Cause.PROTOCOL), (101, Cause.DONE), (9999, Cause.PROTOCOL)])
async def test_a_small_question_may_bound_its_answer_further(bytes_max, cause):
    """A page of metrics need not be as long as an answer may be; and no question may have a longer one."""
    size = 101 if bytes_max < 9999 else 5001
    async with serving(always(plain(b"x" * size)), answer_bytes=5000) as (_, upstream, target):
        assert (await upstream.fetch(target, "/metrics", bytes_max=bytes_max)).cause is cause


async def test_an_event_beyond_its_bound_is_not_gathered():
    """An event without an end ends the leg."""
    async with serving(always(SSE + b"64\r\n" + b"x" * 100 + b"\r\n"), event_bytes=50) as (_, upstream, target):
        assert (await upstream.open(target, "/", b"{}", Receiver()).ended).cause is Cause.PROTOCOL


async def test_a_stream_that_breaks_off_is_told_from_one_that_ends():
    """Without the last chunk of its framing a stream is broken, whatever came before."""
    async with serving(always(SSE + EVENT, then_close=True)) as (_, upstream, target):
        receiver = Receiver()
        end = await upstream.open(target, "/", b"{}", receiver).ended

    assert (end.cause, len(receiver.got)) == (Cause.BROKEN, 1)


async def test_a_bug_in_the_receiver_surfaces_where_the_leg_is_awaited():
    """An exception while events are taken in is raised from `ended`, and the connection is closed."""

    def fail(events):
        raise KeyError("a bug")

    async with serving(always(SSE + EVENT)) as (server, upstream, target):
        with pytest.raises(KeyError):
            await upstream.open(target, "/", b"{}", Receiver(fail)).ended
        await server.closed.wait()


# -------------------------------------------------------------------- silence, pauses, ends


async def test_a_refused_connection_is_told():
    """A port that nobody listens on is unreached, at once."""
    async with serving(always(plain())) as (_, upstream, _):
        listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        listener.close()
        await listener.wait_closed()

        end = await upstream.fetch(Target("two", "127.0.0.1", port), "/")

    assert (end.cause, end.reached, end.silent) == (Cause.UNREACHED, False, False)


async def test_want_of_descriptors_is_no_fault_of_the_servers(monkeypatch):
    """A connection that cannot be made for want of something here does not tell that the server is gone."""
    async with serving(always(plain())) as (_, upstream, target):

        async def wanting(*_, **__):
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(upstream, "loop", SimpleNamespace(**{name: getattr(upstream.loop, name) for name in LOOP}))
        upstream.loop.create_connection = wanting
        end = await upstream.open(target, "/", None).ended

    assert (end.cause, end.reached) == (Cause.SILENT, True)


async def test_a_connection_that_is_there_when_we_wake_is_used():
    """On a starved machine this process may stand still for all of the time that a server has to take it."""
    async with serving(always(plain(b"yes")), connect_s=0.05) as (_, upstream, target):
        leg = upstream.open(target, "/", b"{}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - nobody has a turn meanwhile
        end = await leg.ended

    assert (end.cause, end.body) == (Cause.DONE, b"yes")


async def test_a_connection_that_ended_before_anything_was_sent_is_told(monkeypatch):
    """A server may die between our being connected and our turn: it was not reached, and that is no bug of ours."""
    async with serving(always(plain(b"yes"))) as (_, upstream, target):
        real = upstream.loop.create_connection

        async def short_lived(*given, **more):
            made = await real(*given, **more)
            made[0].abort()
            await asyncio.sleep(0.01)
            return made

        monkeypatch.setattr(upstream, "loop", SimpleNamespace(**{name: getattr(upstream.loop, name) for name in LOOP}))
        upstream.loop.create_connection = short_lived
        end = await asyncio.wait_for(upstream.open(target, "/", b"{}").ended, 2.0)

    assert (end.cause, end.reached) == (Cause.UNREACHED, False)


async def stay_silent(server, reader, writer):
    await server.request(reader)
    await server.until_left(reader)


async def test_a_server_that_never_answers_is_silent():
    """Without a first token in time the leg ends; a head alone is no token."""
    async with serving(always(SSE), first_token_s=0.05) as (_, upstream, target):
        end = await upstream.open(target, "/", b"{}", Receiver()).ended

    assert (end.cause, end.silent) == (Cause.SILENT, True)


async def test_a_small_question_has_its_own_time_limit():
    """A fetch that is not answered in time is silent, and its connection closed."""
    async with serving(stay_silent) as (server, upstream, target):
        end = await upstream.fetch(target, "/", timeout_s=0.02)
        await server.closed.wait()

    assert end.cause is Cause.SILENT


async def test_a_stream_that_stops_between_tokens_is_silent():
    """After the first token the limit between tokens counts; comments are no tokens."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(SSE + EVENT)
        while True:
            writer.write(b"4\r\n: x\n\r\n2\r\n\n\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    async with serving(handle, between_tokens_s=0.05) as (_, upstream, target):
        leg = upstream.open(target, "/", b"{}", Receiver(lambda events: leg.progress()))
        end = await leg.ended

    assert (end.cause, "0.05" in end.detail) == (Cause.SILENT, True)


async def test_a_paused_leg_is_not_silent_and_reads_on_when_resumed():
    """The time that a client takes is not the server's: a paused leg outlives its limit, and then goes on."""

    async def handle(server, reader, writer):
        await server.request(reader)
        writer.write(SSE + EVENT)
        await asyncio.sleep(0.02)
        writer.write(EVENT + END)
        await server.until_left(reader)

    async with serving(handle, between_tokens_s=0.2, first_token_s=2.0) as (_, upstream, target):
        receiver = Receiver(lambda events: leg.pause() if len(events) == 1 else None)
        leg = upstream.open(target, "/", b"{}", receiver)
        await receiver.some.wait()
        await asyncio.sleep(0.5)
        before = (len(receiver.got), leg.ended.done())
        leg.resume()
        end = await leg.ended

    assert before == (1, False)
    assert (end.cause, len(receiver.got)) == (Cause.DONE, 2)


async def test_a_leg_paused_on_its_last_bytes_ends_when_it_is_resumed():
    """An answer that was read whole before the pause is complete only once its events could be taken in."""
    async with serving(always(SSE + EVENT + END)) as (server, upstream, target):
        receiver = Receiver(lambda events: leg.pause())
        leg = upstream.open(target, "/", b"{}", receiver)
        await receiver.some.wait()
        await settled()
        before = leg.ended.done()
        leg.resume()
        end = await leg.ended
        await upstream.fetch(target, "/")

        assert (before, end.cause, server.connections) == (False, Cause.DONE, 1)


async def test_a_leg_paused_before_it_is_connected_reads_nothing():
    """A pause counts also while the connection is being made."""
    async with serving(always(SSE + EVENT + END)) as (_, upstream, target):
        receiver = Receiver()
        leg = upstream.open(target, "/", b"{}", receiver)
        leg.pause()
        await settled()
        before = len(receiver.got)
        leg.resume()
        await leg.ended

    assert (before, len(receiver.got)) == (0, 1)


async def test_a_replica_found_dead_ends_all_its_legs_at_once():
    """Abandoning ends every leg there, connected or not, and keeps none of its connections; others go on."""
    async with serving(stay_silent) as (server, upstream, target):
        legs = [upstream.open(target, "/", b"{}", Receiver()) for _ in range(3)]
        other = upstream.open(Target("two", "127.0.0.1", server.port), "/", b"{}", Receiver())
        await settled()
        legs.append(upstream.open(target, "/", b"{}", Receiver()))

        upstream.abandon("one")

        assert [leg.ended.result().cause for leg in legs] == [Cause.ABANDONED] * 4
        assert not other.ended.done()
        assert not upstream._legs["one"]


async def test_legs_that_bring_tokens_may_be_left_to_show_whether_their_server_lives():
    """Where streams are spared, abandoning ends plain legs only, and a stream brings its events afterwards."""
    go_on = asyncio.Event()

    async def handle(server, reader, writer):
        if b"/stream" in await server.request(reader):
            writer.write(SSE + EVENT)
            await go_on.wait()
            writer.write(EVENT + END)
        await server.until_left(reader)

    async with serving(handle) as (_, upstream, target):
        receiver = Receiver()
        stream = upstream.open(target, "/stream", b"{}", receiver)
        plain_leg = upstream.open(target, "/plain", b"{}")
        await receiver.some.wait()

        upstream.abandon("one", streams=False)
        spared = not stream.ended.done()
        go_on.set()

        assert plain_leg.ended.result().cause is Cause.ABANDONED
        assert spared
        assert (await stream.ended).cause is Cause.DONE
        assert len(receiver.got) == 2


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".local"])
async def test_a_name_that_cannot_be_one_is_a_server_that_is_not_there(host):
    """A host name that cannot even be looked up is unreached, as any other that is wrong, and no bug."""
    async with serving(always(plain())) as (_, upstream, _):
        end = await upstream.open(Target("two", host, 80), "/", None).ended

    assert end.cause is Cause.UNREACHED


async def test_an_abandoned_replicas_idle_connections_are_closed():
    """What was kept to a dead server is not used when it comes back."""
    async with serving(always(plain())) as (server, upstream, target):
        await upstream.fetch(target, "/")
        upstream.abandon("one")
        await upstream.fetch(target, "/")

        assert server.connections == 2


async def test_a_caller_that_is_cancelled_closes_the_connection():
    """vLLM must notice that nobody waits any more: cancelling who awaits a leg, and closing it, hangs up."""
    async with serving(stay_silent) as (server, upstream, target):

        async def wait() -> None:
            leg = upstream.open(target, "/", b"{}", Receiver())
            try:
                await leg.ended
            finally:
                leg.close()

        task = asyncio.create_task(wait())
        await settled()
        task.cancel()
        await server.closed.wait()

        assert not upstream._legs["one"]
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_leg_closed_while_it_connects_leaves_no_connection():
    """A leg that ends before it is connected sends nothing."""
    async with serving(stay_silent) as (server, upstream, target):
        leg = upstream.open(target, "/", b"{}")
        leg.close()
        await asyncio.gather(*upstream._connecting)
        await settled()

        assert (leg.ended.result().cause, server.requests) == (Cause.CLOSED, [])


async def test_closing_the_client_ends_everything():
    """At the end no leg is left unsettled and no connection task behind."""
    async with serving(stay_silent) as (_, upstream, target):
        leg = upstream.open(target, "/", b"{}")
        await upstream.close()

        assert leg.ended.result().cause is Cause.ABANDONED
        assert not upstream._connecting
