"""Clients that come when they come, whatever became of those before them: an open loop, over real sockets.

sent = await offer(gateway.port, wishes, patience_s=30)      all of them, in the order in which they came
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from guards.attainment import Verdict
from guards.sla import Promise
from loadtests.http_messages import MessageReader, Part

PATH = "/v1/completions"  # its first event is its first token
TAIL_BYTES = 1024  # of an answer, that have its usage and its end
FIRST, DONE, STREAM_END = b'data: {"id"', b"data: [DONE]", b"\r\n0\r\n\r\n"
ERROR = b'data: {"error"'
REQUEST_ID = re.compile(rb"x-request-id: (\S+)", re.IGNORECASE)
USAGE = re.compile(rb'"completion_tokens":(\d+)')
WAITED = ("has waited", "of which 0.0 s are spent waiting")  # so the gateway refuses those that had to wait
SENT_MAX = 100_000  # of one offer


@dataclass(frozen=True, slots=True)
class Wish:
    """One request to come. at_s: after the first; key: a secret. promise: what it should be served within.

    who: whose it is, by a name for reports.
    """

    at_s: float
    who: str
    key: str
    body: dict[str, Any]
    promise: Promise


class Sent(asyncio.Protocol):
    """One wish, on a connection of its own, and what came of it. Times in seconds, after it was sent.

    request_id: as the gateway's journal knows it. lag_s: by how much it was sent later than it should have been.
    said: the body of a refusal. over: done when the connection is closed.
    """

    def __init__(self, wish: Wish, lag_s: float) -> None:
        self.wish, self.lag_s = wish, lag_s
        self.status = self.tokens = 0
        self.request_id = self.said = ""
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.whole = self.left = self.refused = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Not the loop's clock, which stands still within a round. Before it connects: who cannot waits as well.
        self._sent_s = time.monotonic()
        self._messages = MessageReader(responses=True)
        self._tail = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        data = json.dumps(self.wish.body).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.wish.key}\r\nconnection: close\r\n"
        transport.write(
            f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
        )

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic() - self._sent_s
        seen = self._tail + data
        if not self.status:
            self.status = int(seen[9:12])
            self.request_id = found[1].decode() if (found := REQUEST_ID.search(seen)) is not None else ""
        if self.first_s is None and self.status == 200 and FIRST in seen:
            self.first_s = now_s
        self.last_s = now_s
        self._tail = seen[-TAIL_BYTES:]
        if self._tail.endswith(STREAM_END) if self.status == 200 else self._ended(data):
            self._transport.close()

    def _ended(self, data: bytes) -> bool:
        """Whether an answer that is no stream is there."""
        return any(part is Part.END for part, _ in self._messages.feed(data))

    def leave(self) -> None:
        """Hang up."""
        if not self.over.done() and self._transport is not None:
            self.left = True
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.whole = self.status == 200 and DONE in self._tail
        if self.last_s is None or not self.whole:
            self.last_s = time.monotonic() - self._sent_s
        found = USAGE.findall(self._tail)
        self.tokens = int(found[-1]) if found else 0
        # Who had waited for so long that a comment was due was told 200 with it, and is refused by an event.
        self.refused = self.status >= 400 or (self.first_s is None and ERROR in self._tail)
        self.said = self._tail.rpartition(b"\r\n\r\n")[2].decode() if self.status >= 400 else ""
        self._tail, self._transport = b"", None
        if not self.over.done():
            self.over.set_result(None)

    @property
    def between_s(self) -> float | None:
        """The mean time between tokens; None where there were less than two."""
        if self.first_s is None or self.last_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)

    @property
    def refused_at_once(self) -> bool:
        """Whether it was refused when it came; else it had waited for its turn, or was refused at that."""
        return self.status >= 400 and not any(said in self.said for said in WAITED)

    @property
    def verdict(self) -> Verdict:
        """What became of its promise, as its client has it: who hung up before it was broken was not served either."""
        assert self.last_s is not None
        if self.refused:
            return Verdict.REFUSED
        if self.whole and self.first_s is not None:
            return self.wish.promise.judge(self.first_s, self.between_s, self.last_s)
        if self.left:
            return self.wish.promise.judge_left(self.last_s, self.first_s) or Verdict.LATE_LAST
        return Verdict.LOST


async def offer(port: int, wishes: Sequence[Wish], patience_s: float) -> list[Sent]:
    """Send each at its time; back when all are answered, or `patience_s` after the last one, when the rest hangs up."""
    assert len(wishes) <= SENT_MAX
    begun_s, sent = time.monotonic(), list[Sent]()
    connecting: set[asyncio.Task[Any]] = set()
    for wish in sorted(wishes, key=lambda one: one.at_s):
        due_s = begun_s + wish.at_s
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        one = Sent(wish, max(0.0, time.monotonic() - due_s))
        sent.append(one)
        task = asyncio.ensure_future(_connect(one, port))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
    await asyncio.wait([one.over for one in sent], timeout=patience_s)
    await _end(sent, connecting)
    return sent


async def _connect(one: Sent, port: int) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: one, "127.0.0.1", port)
    except OSError as error:
        one.connection_lost(error)


async def _end(sent: Iterable[Sent], connecting: Iterable[asyncio.Task[Any]]) -> None:
    """Have all hang up that are still there."""
    await asyncio.gather(*connecting)
    for one in sent:
        one.leave()
    await asyncio.gather(*(one.over for one in sent))
