"""A simulated vLLM: it speaks HTTP, computes at its own pace, stands still, breaks, and comes back."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from loadtests import stub_wire as wire
from loadtests.stub_request import Refusal, chat_ids
from loadtests.stub_tokenizer import decode_bytes, encode
from tests.gateway.stream.vllm_text import VOCAB
from tests.sim.answer import Answer
from tests.sim.network import Link
from tests.sim.oracle import WINDOW, Oracle
from tests.sim.plan import KINDS_OF_SERVER, Fault
from tests.sim.plan import Server as Pace

Note = Callable[[str], None]


class Server:
    """One vLLM process and its engine.

    orders: faults that wait for this server to have said so many tokens.
    stopped: the API process stands still; idle: the engine does; either may be so alone.
    rotten: every answer ends with an error, and /health knows nothing of it.
    sick: /health says that the engine is dead, and requests fail.
    """

    def __init__(self, name: str, pace: Pace, loop: Any, rng: Random, oracles: dict[str, Oracle], note: Note) -> None:
        self.name, self.pace, self.loop, self.rng, self._oracles, self._note = name, pace, loop, rng, oracles, note
        self.refusing = self.unreachable = self.stopped = self.idle = self.sick = self.rotten = False
        self.links: list[Link] = []
        self.answers: dict[Link, Answer] = {}
        self.orders: list[Fault] = []
        self.refusal: tuple[int, int] | None = None  # a status, for so many requests
        self.tokens = self.prompt_tokens = 0
        self.harmed_s = -1e9  # when it last was not well, one of its streams apart
        self.blameless = True  # ever
        self._seen: dict[Link, float] = {}

    @property
    def well(self) -> bool:
        """Whether it answers as it should, now."""
        return not (self.refusing or self.unreachable or self.stopped or self.idle or self.sick or self.rotten)

    # -- for the network

    def received(self, link: Link, data: bytes) -> None:
        if self.stopped:
            link.unread.append(data)
            return
        head, _, body = data.partition(b"\r\n\r\n")
        path = head.split(b" ", 2)[1]
        self._seen[link] = self.loop.time()
        try:
            self._serve(link, path.decode(), body)
        except Refusal as refusal:
            self.send(link, wire.answer(refusal.status, refusal.body))

    def left(self, link: Link) -> None:
        answer = self.answers.pop(link, None)
        if answer is not None:
            answer.over = True
        self._seen.pop(link, None)

    # -- for answers

    def send(self, link: Link, data: bytes) -> None:
        """Say something, as soon as the process runs."""
        if self.stopped:
            link.unsent.append(data)
        else:
            link.send(data)

    def done(self, link: Link) -> None:
        """An answer is complete; its connection can carry another, until it was idle for too long."""
        self.answers.pop(link, None)
        self._seen[link] = since = self.loop.time()
        self.loop.later(self.pace.idle_s, self._tired, link, since)

    # -- for the world

    def stop(self, *, process: bool, engine: bool) -> None:
        """SIGSTOP."""
        self.stopped, self.idle = self.stopped or process, self.idle or engine

    def go_on(self) -> None:
        """SIGCONT: what was computed and what was asked for meanwhile goes on its way."""
        self.stopped = self.idle = False
        for link in list(self.links):
            unsent, link.unsent = link.unsent, []
            if unsent and link.open:
                link.send(b"".join(unsent))
            unread, link.unread = link.unread, []
            for data in unread:
                if link.open:
                    self.received(link, data)
        for answer in list(self.answers.values()):
            answer.go_on()

    def crash(self) -> None:
        """The process dies: its kernel resets what is open and refuses what comes."""
        self.refusing = True
        for link in list(self.links):
            link.hang_up(reset=True)

    def fail(self) -> None:
        """The engine dies under a living process, as vLLM does it: every answer ends with an error."""
        self.sick = True
        for answer in list(self.answers.values()):
            answer.fail()

    def obey(self, fault: Fault, answer: Answer | None) -> None:
        """Have something go wrong; with an answer, for that answer if it is the kind of thing that befalls one."""
        self._note(f"{self.name} {fault.kind} for {fault.for_s}")
        kind, self.blameless = fault.kind, False
        if kind in KINDS_OF_SERVER:
            self.harmed_s = self.loop.time()
        if kind in ("stop", "mute", "freeze"):
            self.stop(process=kind != "freeze", engine=kind != "mute")
        elif kind == "vanish":
            self.unreachable = True
            self.stop(process=True, engine=False)
        elif kind == "crash":
            self.crash()
        elif kind == "sick":
            self.fail()
        elif kind == "rotten":
            self.rotten = True
        elif kind in ("400", "429", "500", "503"):
            self.refusal = (int(kind), 2)
        else:
            for one in [answer] if answer is not None else list(self.answers.values())[:1]:
                one.strike(fault)
            return
        if fault.for_s is not None:
            self.loop.later(fault.for_s, self.heal)

    def heal(self) -> None:
        """All is well again."""
        if not self.well:
            self._note(f"{self.name} heals")
            self.harmed_s = self.loop.time()
        self.refusing = self.unreachable = self.sick = self.rotten = False
        self.refusal = None
        self.go_on()

    # ---------------------------------------------------------------- routes

    def _serve(self, link: Link, path: str, raw: bytes) -> None:
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self._begin(link, path == "/v1/chat/completions", json.loads(raw))
        said: Any
        if path == "/health":
            return self.send(link, wire.answer(503 if self.sick else 200, b""))
        if path == "/metrics":
            return self.send(link, wire.answer(200, self._metrics(), b"text/plain"))
        if path == "/v1/models":
            said = {"object": "list", "data": [{"id": "tiny", "max_model_len": WINDOW}]}
        elif path == "/tokenize":
            body = json.loads(raw)
            ids = encode(body["prompt"], VOCAB) if "prompt" in body else chat_ids(body["messages"], VOCAB)
            said = {"count": len(ids), "max_model_len": WINDOW, "tokens": ids}
        else:
            assert path == "/detokenize"
            said = {"prompt": decode_bytes(json.loads(raw)["tokens"], VOCAB).decode("utf-8", "replace")}
        self.send(link, wire.answer(200, wire.encode(said)))
        self.done(link)

    def _metrics(self) -> bytes:
        counted = {"prompt_tokens": self.prompt_tokens, "generation_tokens": self.tokens}
        lines = [f'vllm:{name}_total{{engine="0",model_name="tiny"}} {count}.0\n' for name, count in counted.items()]
        return "".join(lines).encode()

    def _begin(self, link: Link, chat: bool, body: dict[str, Any]) -> None:
        if self.sick:
            raise Refusal(500, "EngineCore encountered an issue.", "InternalServerError")
        if self.refusal is not None:
            status, times = self.refusal
            self.refusal = (status, times - 1) if times > 1 else None
            raise Refusal(status, "ordered", "Error")
        assert link not in self.answers, "a connection was used for two requests at once"
        oracle = self._oracles.get(body.get("user", ""))
        if oracle is None:  # a canary
            assert body["max_tokens"] == 1
            pieces, tokens = [wire.answer(200, b'{"choices":[]}')], [1]
        elif body.get("stream"):
            pieces = [wire.framed(raw) for raw in oracle.stream(body, chat, self.pace.per_chunk)]
            pieces.append(wire.STREAM_END)
            tokens = self._computed([_tokens(raw) for raw in pieces], body)
        else:
            pieces = [wire.answer(200, oracle.plain(body, chat))]
            tokens = [sum(len(one.ids) for one in oracle.whole(body, chat))]
        streamed = bool(body.get("stream"))
        self._note(f"{self.name} is asked by {body.get('user')}: {len(pieces)} pieces")
        self.answers[link] = answer = Answer(self, link, pieces, tokens, streamed)
        answer.begin()

    def _computed(self, tokens: list[int], body: dict[str, Any]) -> list[int]:
        """How many tokens of each piece it computes: none of those that it replays, which come first."""
        said = (body.get("vllm_xargs") or {}).get("holdfast_resume")
        if said is None:
            return tokens
        assert self.pace.continues, "asked to replay, and cannot"
        again = sum(len(choice) for choice in json.loads(said))
        found = []
        for count in tokens:
            found.append(0 if again and count else count)
            again -= bool(again and count)
        return found

    def _tired(self, link: Link, since_s: float) -> None:
        if link.open and self._seen.get(link) == since_s and link not in self.answers and not self.stopped:
            link.hang_up(reset=False)


def _tokens(raw: bytes) -> int:
    """How many tokens an event brings, roughly: whether it brings any is exact."""
    start = raw.find(b'"token_ids":[', raw.find(b'"prompt_token_ids":[') + 20 if b'"prompt_token_ids":[' in raw else 0)
    if start < 0 or raw[start + 13 : start + 14] == b"]":
        return 0
    return raw.count(b",", start, raw.index(b"]", start)) + 1
