"""What a client connection keeps an eye on, seen from inside; what it does to clients is in scenarios/test_rude_*."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway.http.connection import ClientConnection, ClientLimits, Listener, Written

MIB = 1 << 20
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def listening(handler, **limits):
    """A listener on loopback; answers what connects to it, which knows the listener."""
    listener = Listener(handler, ClientLimits(**limits))
    server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writers.append(writer)
        return reader, writer

    connect.listener = listener
    try:
        yield connect
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await listener.shutdown(0.1)


async def so(condition):
    """Wait until it is."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_client_that_asks_again_is_not_watched_for_its_last_answer():
    """Unread bytes are watched when an answer is written, and no more once their client asks for the next one."""
    watched: list[bool] = []
    seen: list[ClientConnection] = []

    async def handle(request):
        assert isinstance(request.protocol, ClientConnection)
        seen.append(request.protocol)
        request.transport.set_write_buffer_limits(high=64 * MIB)
        watched.append(request.protocol._stall is not None)
        return web.Response(body=b"x" * 16 * MIB)

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.transport.pause_reading()
        writer.write(ASK)
        await so(lambda: seen and seen[0]._stall is not None)
        writer.transport.resume_reading()
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(16 * MIB)
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")

    assert watched == [False, False]


async def test_no_timer_outlives_a_connection():
    """A head that is not whole, and unread bytes: their timers end with the connection, not at their time."""
    seen: list[ClientConnection] = []

    async def handle(request):
        seen.append(request.protocol)
        request.transport.set_write_buffer_limits(high=64 * MIB)
        return web.Response(body=b"x" * 16 * MIB)

    async with listening(handle) as connect:
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(ASK)
        await so(lambda: seen and seen[0]._stall is not None)
        stall = seen[0]._stall
        writer.write(ASK[:9])
        await so(lambda: seen[0]._head_timer is not None)
        head_timer = seen[0]._head_timer
        writer.transport.abort()
        await so(lambda: seen[0].transport is None)

    assert (stall._timer.cancelled(), head_timer.cancelled()) == (True, True)


@pytest.mark.parametrize("asks", [b"", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
async def test_answer_that_was_written_is_all_that_is_sent(asks):
    """aiohttp adds nothing to it, also where the client asked for another protocol; the next request is answered."""

    async def handle(request):
        request.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        return Written(keep_alive=True)

    async with listening(handle) as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(ASK[:-2] + asks + b"\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert (head, await reader.readexactly(2)) == (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok")


async def test_head_that_comes_while_an_answer_waits_is_bounded():
    """A head in pieces, sent by a client that has not read its last answer, is measured like any other."""
    seen: list[str] = []

    async def handle(request):
        seen.append(request.path)
        request.transport.set_write_buffer_limits(high=1 << 16)
        return web.Response(body=b"x" * 16 * MIB)

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.transport.pause_reading()
        writer.write(ASK)
        await so(lambda: seen)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n")
        for number in range(10):
            await asyncio.sleep(0.01)
            writer.write(b"X-%d: %b\r\n" % (number, b"a" * 12_000))
        await asyncio.sleep(0.01)
        writer.write(b"\r\n")
        await asyncio.sleep(0.05)
        writer.transport.resume_reading()
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(16 * MIB)
        refused = await reader.read()

    assert seen == ["/"]
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b"16384 bytes" in refused


ENDS = {
    "closed when answered": lambda connection: connection.close(),
    "closed at once": lambda connection: connection.force_close(),
    "what comes next is refused": lambda connection: connection._head_late(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_what_was_written_goes_out_before_the_connection_ends(end):
    """Also what waits for the end of the loop's turn, and before anything that is said of the end."""

    async def handle(request):
        connection = request.protocol
        connection.turn.write(connection.transport, b"the answer")
        end(connection)
        return Written(keep_alive=True)

    async with listening(handle) as connect:
        reader, writer = await connect()
        writer.write(ASK)
        async with asyncio.timeout(10):
            read = await reader.read()

    assert read.startswith(b"the answer")
    assert read.count(b"the answer") == 1
