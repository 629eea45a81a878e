"""Relays of bytes between addresses, from one network to another: python relay.py LISTEN=CONNECT ...

An address is HOST:PORT or the path of a Unix socket, which is the same in all networks of a machine. Standard library
only: it is run as a plain script, inside of network namespaces.
"""

import asyncio
import contextlib
import sys

CHUNK_BYTES = 1 << 16
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def main(pairs: list[str]) -> None:
    """Relay until the process is ended."""
    servers = [await listen(*pair.split("=", 1)) for pair in pairs]
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def listen(at: str, to: str) -> asyncio.Server:
    """Take connections, and make one for each."""

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await connected(to)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    if at.startswith("/"):
        return await asyncio.start_unix_server(taken, at)
    host, _, port = at.rpartition(":")
    return await asyncio.start_server(taken, host, int(port))


async def connected(to: str) -> Ends:
    """A connection to an address."""
    if to.startswith("/"):
        return await asyncio.open_unix_connection(to)
    host, _, port = to.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end; an end that breaks breaks the other."""
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
    else:
        with contextlib.suppress(OSError):
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
