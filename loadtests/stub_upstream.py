"""An upstream that speaks as vLLM 0.32 does, without a model: fast, seeded, and wrong when told to be.

    python -m loadtests.stub_upstream --port 0 --model stub [--seed 7] [--fault cut --at 20 --every 3]

Prints `listening on 127.0.0.1:PORT` once it listens. See stub_orders for what it can be told, and
stub_language for what it says.
"""

import argparse
import asyncio
import random
import signal
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

from loadtests import stub_wire as wire
from loadtests.stub_answer import Answer, Work
from loadtests.stub_language import Language
from loadtests.stub_orders import FAULTS, Armory, BadOrder, Order, parse_order
from loadtests.stub_pipe import DripPipe, Pipe
from loadtests.stub_request import Refusal, ask, chat_ids, read_body
from loadtests.stub_tokenizer import VOCAB_DEFAULT, VOCAB_MIN, decode_bytes, encode

RECORDED_MAX = 256  # requests, answers per request id and aborts that the books remember
QUEUED_MAX = 64  # requests waiting behind one connection's answer
GUARDED = "/v1"


class Books:
    """What the stub remembers, for tests to see."""

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.connections = 0
        self.open: set[Answer] = set()
        self.works: OrderedDict[int, Work] = OrderedDict()
        self.aborted: deque[dict[str, Any]] = deque(maxlen=RECORDED_MAX)
        self.asked: deque[tuple[str, dict[str, str], bytes]] = deque(maxlen=RECORDED_MAX)

    def opened(self, answer: Answer) -> None:
        """Enter an answer."""
        self.requests += 1
        self.open.add(answer)
        self.works[self.requests] = answer.work
        if len(self.works) > RECORDED_MAX:
            self.works.popitem(last=False)

    def closed(self, answer: Answer, by_peer: bool) -> None:
        """Enter the end of an answer; monotonic_s is when the peer's FIN or RST was seen."""
        if answer not in self.open:
            return
        self.open.discard(answer)
        self.tokens += answer.work.tokens
        if by_peer and not answer.work.finished:
            seen = {"monotonic_s": time.monotonic(), "unix_s": time.time()}
            self.aborted.append({"request_id": answer.work.request_id, "tokens": answer.work.tokens, **seen})

    def report(self) -> dict[str, Any]:
        """Give it all as JSON values."""
        sent: dict[str, int] = {}
        for work in self.works.values():
            sent[work.request_id] = sent.get(work.request_id, 0) + work.tokens
        return {
            "requests": self.requests,
            "open_streams": len(self.open),
            "connections": self.connections,
            "tokens_sent_total": self.tokens + sum(answer.work.tokens for answer in self.open),
            "tokens_sent": sent,
            "aborted": list(self.aborted),
            "recorded": [
                {"path": path, "headers": headers, "body": _decoded(data)} for path, headers, data in self.asked
            ],
        }


class Stub:
    """One upstream: its language, its orders, its books and its routes."""

    def __init__(
        self,
        model: str,
        seed: int = 7,
        vocab: int = VOCAB_DEFAULT,
        window: int = 4096,
        key: str | None = None,
        pace: Order | None = None,
        armory: Armory | None = None,
    ) -> None:
        self.model, self.window, self.key = model, window, key
        self.language = Language(vocab, seed)
        self.pace = pace or Order()
        self.armory = armory or Armory()
        self.books = Books()
        self.health = 200
        self._rng = random.Random(seed)
        self._created = int(time.time())

    def answer(
        self, chat: bool, data: bytes, headers: dict[str, str], transport: Any, done: Callable[[], None]
    ) -> Answer:
        """Make the answer to a request; raises Refusal."""
        body = read_body(data)
        asked = ask(body, chat, self.model, self.language.vocab, self.window)
        try:
            order = parse_order(asked.order or {}, self.pace)
        except BadOrder as error:
            raise Refusal(400, str(error), param="stub") from error
        order = self.armory.apply(order, repr(asked.order))
        own_id = f"{self._rng.getrandbits(64):016x}"
        request_id = headers.get("x-request-id", own_id)
        work = Work(request_id, ("chatcmpl-" if chat else "cmpl-") + request_id, int(time.time()))
        pipe = DripPipe(transport) if order.fault is not None and order.fault.name == "drip" else Pipe(transport)
        return Answer(asked, order, self.language, self.model, work, pipe, done)

    def knows(self, authorization: str | None) -> bool:
        """Tell whether a request carries the key, if one is needed."""
        return self.key is None or authorization == f"Bearer {self.key}"

    def control(self, method: str, path: str, data: bytes) -> bytes:
        """Answer everything that is said at once; raises Refusal."""
        routes: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
            "/v1/models": ("GET", lambda _: self._json(self._models())),
            "/health": ("GET", lambda _: wire.answer(self.health, b"")),
            "/metrics": ("GET", lambda _: wire.answer(200, self._metrics(), b"text/plain; version=0.0.4")),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/stub/stats": ("GET", lambda _: self._json(self.books.report())),
            "/stub/fault": ("POST", self._arm),
        }
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self._json({"detail": "Method Not Allowed"}, 405)
        if path not in routes:
            return self._json({"detail": "Not Found"}, 404)
        wanted, act = routes[path]
        return act(data) if method == wanted else self._json({"detail": "Method Not Allowed"}, 405)

    def _json(self, value: Any, status: int = 200) -> bytes:
        return wire.answer(status, wire.encode(value))

    def _models(self) -> dict[str, Any]:
        allowed = {"create_engine": False, "sampling": True, "logprobs": True, "search_indices": False, "view": True}
        permission = {"id": "modelperm-99603e6dd052400c", "object": "model_permission", "created": self._created}
        permission |= {f"allow_{name}": value for name, value in allowed.items()}
        permission |= {"allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False}
        card = {"id": self.model, "object": "model", "created": self._created, "owned_by": "vllm", "root": self.model}
        card |= {"parent": None, "max_model_len": self.window, "permission": [permission]}
        return {"object": "list", "data": [card]}

    def _metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.model}"}}'
        running = float(len(self.books.open))
        values = {
            "num_requests_running": ("gauge", "Number of requests in model execution batches.", running),
            "num_requests_waiting": ("gauge", "Number of requests waiting to be processed.", 0.0),
            "kv_cache_usage_perc": ("gauge", "KV-cache usage. 1 means 100 percent usage.", min(1.0, running / 256)),
            "prefix_cache_queries_total": ("counter", "Prefix cache queries, in tokens.", 0.0),
            "prefix_cache_hits_total": ("counter", "Prefix cache hits, in tokens.", 0.0),
            "num_preemptions_total": ("counter", "Cumulative number of preemption from the engine.", 0.0),
            "generation_tokens_total": ("counter", "Number of generation tokens processed.", float(self.books.tokens)),
        }
        lines = [
            f"# HELP vllm:{name} {told}\n# TYPE vllm:{name} {kind}\nvllm:{name}{labels} {value}\n"
            for name, (kind, told, value) in values.items()
        ]
        return "".join(lines).encode()

    def _tokenize(self, data: bytes) -> bytes:
        body = read_body(data)
        vocab = self.language.vocab
        ids = encode(str(body.prompt or ""), vocab) if body.messages is None else chat_ids(body.messages, vocab)
        return self._json({"count": len(ids), "max_model_len": self.window, "tokens": ids, "token_strs": None})

    def _detokenize(self, data: bytes) -> bytes:
        tokens = (_decoded(data) or {}).get("tokens", [])
        known = [token for token in tokens if 0 <= token < self.language.vocab]
        return self._json({"prompt": decode_bytes(known, self.language.vocab).decode("utf-8", "replace")})

    def _arm(self, data: bytes) -> bytes:
        """Arm the next `times` requests, set /health's status, or disarm with {"fault": null}."""
        given = dict(_decoded(data) or {})
        times = int(given.pop("times", 1))
        self.health = int(given.pop("health", self.health))
        try:
            order = parse_order(given, self.pace, here=True)
        except BadOrder as error:
            raise Refusal(400, str(error), param="fault") from error
        if order.fault is not None:
            self.armory.arm(order.fault, times)
        elif "fault" in given:
            self.armory.disarm()
        return self._json({"armed": self.armory.armed, "health": self.health})


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
            self._stub.books.closed(self._answer, by_peer=not self._transport.is_closing())
            self._answer = None
        self._queue.clear()


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def serve(stub: Stub, port: int) -> None:
    """Listen until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    server = await loop.create_server(lambda: StubProtocol(stub), "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


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
    given = parser.parse_args()
    pace = Order(tokens_per_s=given.tokens_per_s, per_chunk=given.per_chunk, ttft_s=given.ttft_s)
    ordered = {"fault": given.fault, "at": given.at, "status": given.status}
    armory = Armory(standing=parse_order(ordered, pace, here=True).fault, every=given.every)
    stub = Stub(given.model, given.seed, max(given.vocab, VOCAB_MIN), given.max_model_len, given.key, pace, armory)
    uvloop.run(serve(stub, given.port))


if __name__ == "__main__":
    main()
