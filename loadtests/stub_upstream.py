"""An upstream that speaks as vLLM 0.32 does, without a model: fast, seeded, and wrong when told to be.

    python -m loadtests.stub_upstream --port 0 --model stub [--seed 7] [--fault cut --at 20 --every 3]

Prints `listening on 127.0.0.1:PORT` once it listens. See stub_orders for what it can be told, and
stub_language for what it says.
"""

import argparse
import asyncio
import json
import signal
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from loadtests import stub_wire as wire
from loadtests.stub_answer import Answer
from loadtests.stub_orders import FAULTS, Armory, Order, parse_order
from loadtests.stub_prefix import Prefixes
from loadtests.stub_request import Refusal
from loadtests.stub_server import CONTINUES, PAGES, Stub
from loadtests.stub_tokenizer import VOCAB_DEFAULT, VOCAB_MIN

DRAIN_S = 0.1  # for the last bytes of open answers
QUEUED_MAX = 64  # requests waiting behind one connection's answer
GUARDED = ("/v1", "/holdfast")


class StubProtocol(asyncio.Protocol):
    """One connection: requests in order, one answer at a time."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._answer: Answer | None = None
        self._queue: deque[tuple[str, str, dict[str, str], bytes]] = deque()
        self._headers: dict[str, str] = {}
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._stub.books.connections += 1

    def connection_lost(self, error: Exception | None) -> None:
        self._stub.books.connections -= 1
        self._leave()

    def eof_received(self) -> bool:
        self._leave()
        return False

    def pause_writing(self) -> None:
        if self._answer is not None:
            self._answer.pipe.full = True

    def resume_writing(self) -> None:
        if self._answer is not None:
            self._answer.pipe.full = False
            self._answer.resume()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(wire.answer(400, b"Invalid HTTP request received.", b"text/plain; charset=utf-8"))
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        request = (method, urlsplit(self._url.decode("latin-1")).path, self._headers, b"".join(self._body))
        self._url, self._headers, self._body = b"", {}, []
        if self._answer is None:
            self._serve(*request)
        elif len(self._queue) < QUEUED_MAX:
            self._queue.append(request)
        else:
            self._transport.close()

    def _serve(self, method: str, path: str, headers: dict[str, str], data: bytes) -> None:
        try:
            if path.startswith(GUARDED) and not self._stub.knows(headers.get("authorization")):
                self._transport.write(wire.answer(401, b'{"error":"Unauthorized"}'))
            elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
                return self._begin(path, headers, data)
            else:
                self._transport.write(self._stub.control(method, path, data))
        except Refusal as refusal:
            self._transport.write(wire.answer(refusal.status, refusal.body))
        self._close_if_last()

    def _begin(self, path: str, headers: dict[str, str], data: bytes) -> None:
        stub = self._stub
        stub.books.asked.append((path, headers, data))
        if not headers.get("content-type", "").startswith("application/json"):
            said = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise Refusal(400, said, "Bad Request")
        self._answer = stub.answer(path == "/v1/chat/completions", data, headers, self._transport, self._done)
        stub.books.opened(self._answer)
        self._answer.begin()

    def _done(self) -> None:
        if self._answer is not None:
            self._stub.books.closed(self._answer, by_peer=False)
            self._answer = None
            self._close_if_last()
        while self._queue and self._answer is None and not self._transport.is_closing():
            self._serve(*self._queue.popleft())

    def _close_if_last(self) -> None:
        if not self._parser.should_keep_alive() and not self._queue:
            self._transport.close()

    def _leave(self) -> None:
        if self._answer is not None:
            self._answer.abandon()
            self._stub.books.closed(self._answer, by_peer=not self._answer.pipe.ended)
            self._answer = None
        self._queue.clear()


async def serve(stub: Stub, port: int) -> None:
    """Listen until SIGTERM or SIGINT; answers that are open then end with an error, as vLLM's do."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    server = await loop.create_server(lambda: StubProtocol(stub), "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()
    for answer in list(stub.books.open):
        answer.drain()
    await asyncio.sleep(DRAIN_S)


def main() -> None:
    """Serve what the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--vocab", type=int, default=VOCAB_DEFAULT, help=f"at least {VOCAB_MIN}")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--key", help="the API key that requests to /v1 must carry")
    parser.add_argument("--tokens-per-s", type=float, default=0.0, help="0: as fast as possible")
    parser.add_argument("--per-chunk", type=int, default=1)
    parser.add_argument("--ttft-s", type=float, default=0.0)
    parser.add_argument("--fault", choices=sorted(FAULTS))
    parser.add_argument("--at", type=int)
    parser.add_argument("--status", type=int, default=503)
    parser.add_argument("--every", type=int, default=1, help="each K-th request is hit")
    parser.add_argument(
        "--engine", nargs="?", const="{}", metavar="JSON",
        help='compute as a server of limited capacity does; what differs from the usual: {"seqs_max": 8}',
    )  # fmt: skip
    parser.add_argument("--pages", type=int, help="has Holdfast's plugin, which has found so many corrupt pages")
    parser.add_argument(
        "--continues", metavar="JSON",
        help='has the plugin, and continues streams by replay; what differs from the usual: {"seeds": false}',
    )  # fmt: skip
    parser.add_argument("--prefill-token-s", type=float, help="has a prefix cache; for each token that is not in it")
    given = parser.parse_args()
    pace = Order(tokens_per_s=given.tokens_per_s, per_chunk=given.per_chunk, ttft_s=given.ttft_s)
    ordered = {"fault": given.fault, "at": given.at, "status": given.status}
    armory = Armory(standing=parse_order(ordered, pace, here=True).fault, every=given.every)
    vocab = max(given.vocab, VOCAB_MIN)
    try:
        stub = Stub(given.model, given.seed, vocab, given.max_model_len, given.key, pace, armory, given.engine)
    except ValueError as error:
        parser.error(f"--engine: {error}")
    if given.pages is not None:
        stub.pages = PAGES | {"corrupt": [{"kind": "changed", "where": "gate", "pages": given.pages}]}
    if given.continues is not None:
        stub.pages = (stub.pages or PAGES) | {"continues": CONTINUES | json.loads(given.continues)}
    if given.prefill_token_s is not None:
        stub.prefixes = Prefixes(given.prefill_token_s)
    uvloop.run(serve(stub, given.port))


if __name__ == "__main__":
    main()
