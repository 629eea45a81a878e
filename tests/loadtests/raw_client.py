"""A client that shows the wire: every byte that came, and how the connection ended."""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loadtests.http_messages import MessageReader, Part

READ_S_MAX = 30.0


@dataclass
class Seen:
    """One answer as it came. ended: `clean`, `fin`, `reset`, or `left` when the client went away."""

    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    ended: str = ""
    reads: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    parsed: int = 0  # bytes of the body whose events are in `events`

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")

    @property
    def ids(self) -> list[int]:
        """The token ids of the first choice, in complete events."""
        return [
            token
            for event in self.events
            for choice in event.get("choices", [])
            if choice["index"] == 0
            for token in choice.get("token_ids") or []
        ]

    @property
    def text(self) -> str:
        choices = [choice for event in self.events for choice in event.get("choices", []) if choice["index"] == 0]
        return "".join(choice["text"] if "text" in choice else choice["delta"]["content"] for choice in choices)

    @property
    def finish(self) -> str | None:
        reasons = [choice["finish_reason"] for event in self.events for choice in event.get("choices", [])]
        return next((reason for reason in reasons if reason), None)


class Client:
    """One keep-alive connection.

    handle: a socket with options of its own; reading: nothing is read before it is set.
    """

    def __init__(self, port: int, handle: socket.socket | None = None, reading: asyncio.Event | None = None) -> None:
        self._port, self._handle, self._reading = port, handle, reading
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        until: Callable[[Seen], bool] = lambda seen: False,
    ) -> Seen:
        """Ask and read to the end of the answer, or until the condition holds."""
        if self._streams is None:
            self._streams = await self._connect()
        reader, writer = self._streams
        writer.write(_request(path, body, headers or {}))
        if self._reading is not None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await self._reading.wait()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
        messages, seen = MessageReader(responses=True), Seen()
        try:
            async with asyncio.timeout(READ_S_MAX):
                while not seen.ended:
                    data = await reader.read(1 << 16)
                    seen.reads += 1
                    seen.ended = "" if data else "fin"
                    _take(seen, messages, data)
                    if not seen.ended and until(seen):
                        seen.ended = "left"
        except ConnectionResetError:
            seen.ended = "reset"
        if seen.ended != "clean":
            await self.close()
        return seen

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._handle is None:
            return await asyncio.open_connection("127.0.0.1", self._port)
        self._handle.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._handle, ("127.0.0.1", self._port))
        return await asyncio.open_connection(sock=self._handle)

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def ask(port: int, path: str, body: Any = None, **more: Any) -> Seen:
    """Ask once, on a connection of its own."""
    async with Client(port) as client:
        return await client.ask(path, body, **more)


def _request(path: str, body: Any, headers: dict[str, str]) -> bytes:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "stub", "content-type": "application/json", "content-length": str(len(data)), **headers}
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n"
    return (head + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n").encode() + data


def _take(seen: Seen, messages: MessageReader, data: bytes) -> None:
    for part, run in messages.feed(data):
        if part is Part.HEAD:
            seen.head += run
        elif part is Part.BODY:
            seen.body += run
        elif part is Part.END:
            seen.ended = "clean"
    if b"text/event-stream" in seen.head:
        *complete, rest = seen.body[seen.parsed :].split(b"\n\n")
        seen.parsed = len(seen.body) - len(rest)
        seen.events += [event for event in map(_event, complete) if event is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line.rpartition(b"\n")[2].removeprefix(b"data: "))  # comments may stand above it
    except ValueError:  # [DONE], comments, garbage
        return None
    return event if isinstance(event, dict) else None
