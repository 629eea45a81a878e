"""Clients of one gateway, in a process of their own:  python -m loadtests.bench.load '{"port": 8080, ...}'

Opens everything, waits until it is quiet, measures for a while, and reads the gateway's account at both ends of it.
Every answer is checked: numbers without a gap, an end, nothing that was not asked for. Prints a `Seen` as JSON.
"""

import asyncio
import sys
import time
from collections.abc import Callable

import httptools
import msgspec
import uvloop

from loadtests.bench.account import memory_bytes, times_s, tree
from loadtests.bench.words import MODEL, SEEN, TOKENS_PER_PLAIN

PLAIN_TEXT = b"said" * TOKENS_PER_PLAIN
DONE = b"data: [DONE]\n\n"
IDS = b'"token_ids":['
SETTLE_S = 0.5  # from the last opening to the first measured moment
LATE_S_MAX = 60.0  # for answers that are still to come after the measured time
FAULTS_KEPT = 3


class Job(msgspec.Struct, frozen=True):
    """What to ask, and whose account to read. Times in seconds.

    port, headers: of the gateway; pid: its first process, 0 where there is none.
    model, ids: what each request says; ids: token ids are asked for.
    connections: streams, or connections that ask one plain question after the other.
    every_s: between two chunks of a stream; between two plain requests of a connection, 0 for no wait.
    open_s: over which connections are opened; window_s: measured.
    """

    port: int
    pid: int = 0
    headers: dict[str, str] = {}
    model: str = MODEL
    ids: bool = False
    stream: bool = True
    connections: int = 1
    every_s: float = 0.0
    open_s: float = 0.5
    window_s: float = 1.0

    @property
    def tokens(self) -> int:
        """Chunks of each stream: enough to last to the end of the window, whenever it was opened."""
        return int((self.open_s + SETTLE_S + self.window_s) / self.every_s) + 2 if self.every_s else 1

    def request(self) -> bytes:
        """The bytes of one request."""
        order = f"tokens={self.tokens} every_us={self.every_s * 1e6:.0f}"
        body = {"model": self.model, "messages": [{"role": "user", "content": order}], "stream": self.stream}
        data = msgspec.json.encode(body | {"max_tokens": 4096} | ({"return_token_ids": True} if self.ids else {}))
        lines = ["POST /v1/chat/completions HTTP/1.1", "host: gateway", "content-type: application/json"]
        lines += [f"content-length: {len(data)}", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class Seen(msgspec.Struct):
    """What came of a job.

    units: chunks, or plain answers, in the window of `window_s` seconds.
    cpu_s, waited_s: of the gateway in that time, on its core, and for it while others had it.
    late_ms: of each unit in the window: since it was sent, or asked for. Their p50 and p99.
    memory_bytes: of the gateway at the end of the window, while `open` streams were open.
    answers, failed: in all, and those not as they should be; `faults` tells of the first.
    """

    units: int = 0
    window_s: float = 0.0
    cpu_s: float = 0.0
    waited_s: float = 0.0
    late_ms: tuple[float, float] = (0.0, 0.0)
    memory_bytes: int = 0
    open: int = 0
    answers: int = 0
    failed: int = 0
    faults: list[str] = []


class Tally:
    """What all connections have seen so far."""

    def __init__(self) -> None:
        self.measuring = False
        self.late_ns: list[int] = []
        self.open = self.answers = 0
        self.faults: list[str] = []

    def unit(self, late_ns: int) -> None:
        """A chunk or a plain answer has come."""
        if self.measuring:
            self.late_ns.append(late_ns)


class Client(asyncio.Protocol):
    """One connection. on_end: called when it has no more to do."""

    def __init__(self, job: Job, tally: Tally, on_end: Callable[[], None]) -> None:
        self.job, self.tally, self._on_end = job, tally, on_end
        self.request = job.request()
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.WriteTransport
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.tally.open += 1
        self.begin()

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the connection ended early")

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def begin(self) -> None:
        """Ask."""
        self.transport.write(self.request)

    def end(self, fault: str) -> None:
        """Have no more to do."""
        if not self.ended:
            self.ended = True
            self.tally.open -= 1
            if fault:
                self.tally.faults.append(fault)
            self.transport.close()
            self._on_end()


class StreamClient(Client):
    """Reads one stream to its end."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._rest = b""
        self._seen = 0
        self._fault = ""
        self._done = False

    def on_body(self, body: bytes) -> None:
        now, text = time.monotonic_ns(), self._rest + body
        whole = text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0
        self._rest, text = text[whole:], text[:whole]
        for mark in SEEN.finditer(text):
            if int(mark[1]) != self._seen:
                self._fault = self._fault or f"chunk {int(mark[1])} came after {self._seen - 1}"
            elif self._seen == 0 and not self.job.ids and IDS in text:
                self._fault = "token ids that were not asked for"
            self._seen += 1
            self.tally.unit(now - int(mark[2]))
        self._done = self._done or DONE in text

    def on_message_complete(self) -> None:
        status, tokens = self.parser.get_status_code(), self.job.tokens
        if status != 200:
            self._fault = f"status {status}: {self._rest[:200]!r}"
        elif not self._fault and (not self._done or self._rest or self._seen != tokens):
            self._fault = f"{self._seen} of {tokens} chunks, [DONE]: {self._done}"
        self.tally.answers += 1
        self.end(self._fault)


class PlainClient(Client):
    """Asks one question after the other, until told to stop."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.stopped = False
        self._body = b""
        self._asked_ns = 0

    def begin(self) -> None:
        if self.stopped:
            return self.end("")
        self._body = b""
        self._asked_ns = time.monotonic_ns()
        super().begin()
        return None

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        late_ns = time.monotonic_ns() - self._asked_ns
        status = self.parser.get_status_code()
        if status != 200 or PLAIN_TEXT not in self._body or (IDS in self._body and not self.job.ids):
            return self.end(f"status {status}: {self._body[:200]!r}")
        self.tally.unit(late_ns)
        self.tally.answers += 1
        self.parser = httptools.HttpResponseParser(self)
        wait_s = self.job.every_s - late_ns / 1e9
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s, self.begin)
        else:
            self.begin()
        return None


async def run(job: Job) -> Seen:
    """Do a job."""
    loop, tally, seen = asyncio.get_running_loop(), Tally(), Seen()
    over, left = asyncio.Event(), job.connections
    clients: list[Client] = []

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    begun = loop.time()
    for number in range(job.connections):
        await asyncio.sleep(max(0.0, begun + number * job.open_s / job.connections - loop.time()))
        client: Client = (StreamClient if job.stream else PlainClient)(job, tally, ended)
        clients.append(client)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", job.port)  # type: ignore[misc]
    await asyncio.sleep(SETTLE_S)
    await _measure(job, tally, seen)
    for client in clients:
        if isinstance(client, PlainClient):
            client.stopped = True
    try:
        await asyncio.wait_for(over.wait(), LATE_S_MAX)
    except TimeoutError:
        tally.faults += ["no end came"] * left
    seen.answers, seen.failed, seen.faults = tally.answers, len(tally.faults), tally.faults[:FAULTS_KEPT]
    return seen


async def _measure(job: Job, tally: Tally, seen: Seen) -> None:
    pids = tree(job.pid) if job.pid else []
    before, begun, tally.measuring = times_s(pids), time.monotonic(), True
    await asyncio.sleep(job.window_s)
    tally.measuring = False
    seen.cpu_s, seen.waited_s = (now - then for now, then in zip(times_s(pids), before, strict=True))
    seen.window_s = time.monotonic() - begun
    seen.units, seen.open, seen.memory_bytes = len(tally.late_ns), tally.open, memory_bytes(pids)
    ranked = sorted(tally.late_ns) or [0]
    seen.late_ms = (ranked[len(ranked) // 2] / 1e6, ranked[len(ranked) * 99 // 100] / 1e6)


def main() -> None:
    """Do the job on the command line."""
    seen = uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Job)))
    print(msgspec.json.encode(seen).decode())


if __name__ == "__main__":
    main()
