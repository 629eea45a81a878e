"""One upstream: its language, its orders, its books and its routes; no sockets."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loadtests import stub_wire as wire
from loadtests.stub_answer import Answer, Work
from loadtests.stub_books import Books, decoded
from loadtests.stub_computed import ComputedPlain, ComputedStream
from loadtests.stub_computer import computer
from loadtests.stub_engine import Engine
from loadtests.stub_language import Language
from loadtests.stub_orders import Armory, BadOrder, Order, parse_order
from loadtests.stub_pipe import DripPipe, Pipe
from loadtests.stub_plain import PlainAnswer
from loadtests.stub_prefix import Prefixes
from loadtests.stub_request import Refusal, ask, chat_ids, read_body
from loadtests.stub_stream import StreamedAnswer
from loadtests.stub_tokenizer import VOCAB_DEFAULT, decode_bytes, encode

GAUGES = frozenset(("num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"))
SLOWNESS_MAX = 1000.0
PAGES: dict[str, Any] = {  # what Holdfast's plugin says of an engine that is well, at its start
    "version": "0.1.0",
    "protected": True,
    "unprotected": [],
    "settings": {"verify": "always", "scrub": 0.01},
    "fingerprint": "3fa9c1d2" * 8,
    "weights": {"changes": 0, "cycle_s": None},
    "pages": {
        "resident": 0,
        "sealed": 0,
        "verified": 0,
        "scrubbed": 0,
        "evicted": 0,
        "withdrawn": 0,
        "saved": 0,
        "loaded": 0,
    },
    "corrupt": [],
    "requests": {"recomputed": 0, "aborted": 0},
    "chains_broken": 0,
    "scrub": {"cycle_s": 1.25},
    "digest": {"seconds": 0.1, "bytes": 1000},
    "prefix": {"asked_tokens": 0, "hit_tokens": 0},
    "continues": None,
    "continues_not": "",
}
CONTINUES: dict[str, Any] = {"protocol": 1, "seeds": True, "refused": []}  # fmt: skip


class Stub:
    """Makes answers, and answers at once what needs no saying."""

    def __init__(
        self,
        model: str,
        seed: int = 7,
        vocab: int = VOCAB_DEFAULT,
        window: int = 4096,
        key: str | None = None,
        pace: Order | None = None,
        armory: Armory | None = None,
        limits: str | None = None,
    ) -> None:
        """limits: of an engine that has some, see stub_computer; None computes all that is asked for at once."""
        self.model, self.window, self.key = model, window, key
        self.language = Language(vocab, seed)
        self.pace = pace or Order()
        self.armory = armory or Armory()
        self.books = Books()
        self.health = 200
        self.engine = Engine()
        self.gauges: dict[str, float] = {}  # what /metrics says instead of the truth
        self.pages: Any = None  # what /holdfast/status says; None: it has no plugin
        self.prefixes: Prefixes | None = None  # None: it has no prefix cache, and reads prompts in no time
        self.template: list[int] = []  # ids that its chat template puts before a prompt, beside those that all stubs do
        self.sampling: Any = None  # what /v1/completions/render says a request is run with; None: it has no such route
        self._rng = random.Random(seed)
        self.computer = None if limits is None else computer(limits, window, self.engine, random.Random(seed))
        self._created = int(time.time())

    def answer(
        self, chat: bool, data: bytes, headers: dict[str, str], transport: Any, done: Callable[[], None]
    ) -> Answer:
        """Make the answer to a request; raises Refusal."""
        body = read_body(data)
        replays = self.computer is None and isinstance(self.pages, dict) and bool(self.pages.get("continues"))
        asked = ask(body, chat, self.model, self.language.vocab, self.window, replays=replays)
        try:
            order = parse_order(asked.order or {}, self.pace)
        except BadOrder as error:
            raise Refusal(400, str(error), param="stub") from error
        order = self.armory.apply(order, repr(asked.order))
        if self.prefixes is not None:
            cached = sum(map(self.prefixes.enter, asked.prompts))
            left_s = (sum(map(len, asked.prompts)) - cached) * self.prefixes.token_s
            order = replace(order, cached=cached, ttft_s=order.ttft_s + left_s)
        own_id = f"{self._rng.getrandbits(64):016x}"
        request_id = headers.get("x-request-id", own_id)
        work = Work(request_id, ("chatcmpl-" if chat else "cmpl-") + request_id, int(time.time()))
        pipe = DripPipe(transport) if order.fault is not None and order.fault.name == "drip" else Pipe(transport)
        given = (asked, order, self.language, self.model, work, pipe, self.engine, done)
        if self.computer is not None:
            return (ComputedStream if asked.stream else ComputedPlain)(self.computer, *given)
        return (StreamedAnswer if asked.stream else PlainAnswer)(*given)

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
            "/v1/completions/render": ("POST", self._render),
            "/holdfast/status": ("GET", lambda _: self._pages()),
            "/stub/stats": ("GET", lambda _: self._json(self.books.report())),
            "/stub/fault": ("POST", self._arm),
        }
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self._json({"detail": "Method Not Allowed"}, 405)
        if path not in routes:
            return self._json({"detail": "Not Found"}, 404)
        wanted, act = routes[path]
        return act(data) if method == wanted else self._json({"detail": "Method Not Allowed"}, 405)

    def _pages(self) -> bytes:
        return self._json({"detail": "Not Found"}, 404) if self.pages is None else self._json(self.pages)

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
            "prompt_tokens_total": ("counter", "Number of prefill tokens processed.", float(self.books.prompt_tokens)),
            "generation_tokens_total": ("counter", "Number of generation tokens processed.", float(self.books.tokens)),
        }
        said = (self.computer.gauges() if self.computer is not None else {}) | self.gauges
        lines = [
            f"# HELP vllm:{name} {told}\n# TYPE vllm:{name} {kind}\nvllm:{name}{labels} {said.get(name, value)}\n"
            for name, (kind, told, value) in values.items()
        ]
        return "".join(lines).encode()

    def _tokenize(self, data: bytes) -> bytes:
        body = read_body(data)
        vocab = self.language.vocab
        chat = body.messages is not None
        ids = self.template + chat_ids(body.messages, vocab) if chat else encode(str(body.prompt or ""), vocab)
        return self._json({"count": len(ids), "max_model_len": self.window, "tokens": ids, "token_strs": None})

    def _render(self, data: bytes) -> bytes:
        if self.sampling is None:
            return self._json({"error": {"message": "Scale-out endpoints are disabled.", "code": 403}}, 403)
        return self._json([{"request_id": "cmpl-0", "token_ids": [1], "sampling_params": self.sampling}])

    def _detokenize(self, data: bytes) -> bytes:
        tokens = (decoded(data) or {}).get("tokens", [])
        known = [token for token in tokens if 0 <= token < self.language.vocab]
        return self._json({"prompt": decode_bytes(known, self.language.vocab).decode("utf-8", "replace")})

    def _arm(self, data: bytes) -> bytes:
        """Arm the next `times` requests, or disarm with {"fault": null}.

        Set also /health's status, what /metrics says, and the engine's state and pace. And what /holdfast/status says:
        an object is what differs from PAGES, null takes the plugin away. And `template` and `sampling`: see there.
        """
        given = dict(decoded(data) or {})
        times = int(given.pop("times", 1))
        self.health = int(given.pop("health", self.health))
        self._set_gauges(given.pop("gauges", None))
        if "pages" in given:
            said = given.pop("pages")
            self.pages = PAGES | said if isinstance(said, dict) and "engines" not in said else said
        self.template = list(given.pop("template", self.template))
        self.sampling = given.pop("sampling", self.sampling)
        self._set_engine(given.pop("engine", None), given.pop("slowness", None))
        try:
            order = parse_order(given, self.pace, here=True)
        except BadOrder as error:
            raise Refusal(400, str(error), param="fault") from error
        if order.fault is not None:
            self.armory.arm(order.fault, times)
        elif "fault" in given:
            self.armory.disarm()
        return self._json({"armed": self.armory.armed, "health": self.health})

    def _set_gauges(self, said: Any) -> None:
        """Have /metrics say these; those that were said before are true again."""
        if said is None:
            return
        if not isinstance(said, dict) or set(said) - GAUGES:
            raise Refusal(400, f"known gauges: {', '.join(sorted(GAUGES))}", param="gauges")
        self.gauges = {name: float(value) for name, value in said.items()}

    def _set_engine(self, state: str | None, slowness: float | None) -> None:
        if slowness is not None:
            if not 0 < slowness <= SLOWNESS_MAX:
                raise Refusal(400, f"a slowness is above 0 and at most {SLOWNESS_MAX}", param="slowness")
            self.engine.slow(slowness)
        if state not in (None, "frozen", "running"):
            raise Refusal(400, f"unknown state of the engine: {state}", param="engine")
        if state == "frozen":
            self.engine.freeze()
        elif state == "running":
            self.engine.thaw()
