"""A client's side of an answer, on real sockets; whole answers and streams are in scenarios/."""

import asyncio
import socket

import pytest

from gateway.http.sink import ClientSink
from tests.gateway.http.test_connection import ASK, MIB, listening, so

BUFFER_BYTES = 64 * MIB  # none of it pauses anything here


def sink_of(request):
    return ClientSink(request, "req-1", 0.0, BUFFER_BYTES)


async def stream(request):
    sink = sink_of(request)
    sink.write(b"x" * 12 * MIB)
    return sink.response()


async def broken(request):
    sink = sink_of(request)
    sink.write(b"x" * 12 * MIB)
    sink.broken("it broke")
    return sink.response()


async def plain(request):
    request.transport.set_write_buffer_limits(high=BUFFER_BYTES)
    return sink_of(request).plain(b"x" * 12 * MIB)


async def test_a_stream_that_breaks_says_so_and_has_no_clean_end():
    """The error is the last thing a client reads, and the framing is left open: nothing passes for the whole answer."""

    async def handle(request):
        sink = sink_of(request)
        sink.write(b"data: one\n\n")
        sink.broken("it broke")
        return sink.response()

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.write(ASK)
        async with asyncio.timeout(10):
            read = await reader.read()

    assert read.count(b"data: one") == 1
    assert read.index(b"data: one") < read.index(b"it broke")
    assert not read.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("answer", [stream, broken, plain])
async def test_an_answer_that_nobody_reads_is_watched(answer):
    """However it ended, and however little of it waits: its client is hung up on after a while."""
    seen = []

    async def handle(request):
        seen.append(request.protocol)
        return await answer(request)

    async with listening(handle, stall_s=0.3) as connect:
        _, writer = await connect()
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.transport.pause_reading()
        writer.write(ASK)
        await so(lambda: seen and seen[0].transport is None)


async def test_a_shutdown_waits_no_longer_than_the_last_answer_takes():
    """It is told when a handler is done."""
    begun = asyncio.Event()

    async def handle(request):
        begun.set()
        await asyncio.sleep(0.2)
        return sink_of(request).plain(b"{}")

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.write(ASK)
        await begun.wait()
        (connection,) = connect.listener.connections
        async with asyncio.timeout(5):
            await connection.shutdown(60)
        read = await reader.read()

    assert read.endswith(b"\r\n\r\n{}")


async def test_a_comment_begins_the_stream_and_what_follows_is_read_as_ever():
    """The head goes with it, without a replica that nobody knows yet; no empty line follows, which SDKs choke on."""
    quiet = []

    async def handle(request):
        sink = sink_of(request)
        sink.ping()
        sink.from_replica("a", 0.0)
        sink.quiet = True
        sink.write(b"data: one\n\n")
        quiet.append(sink.quiet)
        return sink.response()

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.write(ASK)
        read = await reader.readuntil(b"0\r\n\r\n")

    head, _, body = read.partition(b"\r\n\r\n")
    assert quiet == [False]
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"x-holdfast-replica" not in head
    assert body.startswith(b"7\r\n: ping\n\r\n")
    assert body.count(b"data: one\n\n") == 1


async def test_a_client_that_must_read_first_gets_no_comment():
    """It has enough to read."""
    seen = []

    async def handle(request):
        sink = sink_of(request)
        request.protocol.full = True
        sink.ping()
        seen.append(sink.started)
        request.protocol.full = False
        return sink.plain(b"{}")

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.write(ASK)
        await reader.readuntil(b"{}")

    assert seen == [False]
