"""A TCP switch: what is behind its port can be changed, slowed down and silenced while clients are connected.

    python -m loadtests.switch --to 6379

Prints `listening on 127.0.0.1:PORT`. Each line of JSON on stdin changes it, such as {"how": "slow", "delay_s": 5},
{"how": "silent"}, {"how": "refuse"} or {"how": "pass", "to": 6380}; `ok` is printed once it is so. Connections that are
open then end, but for those that are to be silent: they stay, and nothing comes of them.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READ_BYTES = 64 << 10
ROOT = Path(__file__).resolve().parent.parent


class Switch:
    """Listens on loopback, and passes on what it is to."""

    def __init__(self, to: int) -> None:
        self._to, self._how, self._delay_s = to, "pass", 0.0
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def start(self) -> int:
        """Listen; the port, the same each time."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    async def change(self, how: str, to: int | None = None, delay_s: float = 0.0) -> None:
        """From now on: pass, slow, silent or refuse."""
        self._how, self._delay_s = how, delay_s
        self._to = to if to is not None else self._to
        if how != "silent":
            for link in self._links:
                link.cancel()
        if how == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif how != "refuse" and self._server is None:
            await self.start()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection("127.0.0.1", self._to)
                try:
                    await asyncio.gather(self._pipe(reader, back, slow=False), self._pipe(there, writer, slow=True))
                finally:
                    back.close()
        finally:
            self._links.discard(task)
            writer.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        while data := await reader.read(READ_BYTES):
            if self._how == "silent":
                continue
            if slow and self._delay_s:
                await asyncio.sleep(self._delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()


class SwitchProcess:
    """One, in a process of its own: whoever is slow beside it does not slow it."""

    def __init__(self, to: int) -> None:
        command = [sys.executable, "-m", "loadtests.switch", "--to", str(to)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._said().rsplit(":", 1)[1])

    def change(self, how: str, **order: Any) -> None:
        """See `Switch.change`; back once it is so."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"how": how, **order}) + "\n")
        self._process.stdin.flush()
        assert self._said() == "ok"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


async def serve(to: int) -> None:
    """Until stdin ends."""
    switch = Switch(to)
    print(f"listening on 127.0.0.1:{await switch.start()}", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await switch.change(**json.loads(line))
        print("ok", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m loadtests.switch")
    parser.add_argument("--to", type=int, required=True, help="a port of 127.0.0.1")
    asyncio.run(serve(parser.parse_args().to))
