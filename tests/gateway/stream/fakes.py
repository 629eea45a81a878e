"""Hand-made parts around a relay: a client, a budget, a leg, an engine, and a loop that joins them as the flow does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gateway.stream.call import Bounds, Call, Endpoint
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.relay import Part, Relay
from gateway.stream.seams import Ask, Terms
from gateway.stream.text import LocalDecoder
from guards.budget import Meter
from guards.continuing import Continues
from loadtests.stub_tokenizer import ASSISTANT, BOS, EOS, USER, encode_ordinary
from loadtests.stub_wire import Wire, usage
from tests.gateway.stream.vllm_text import VOCAB, VllmText, decode_step, tokenizer
from tests.ledgers import tokens

PROMPT = [BOS, USER, *b"Hi", ASSISTANT]
PLENTY = 1 << 40


def call_for(endpoint: Endpoint = Endpoint.CHAT, **said: Any) -> Call:
    """A streamed request with these fields."""
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint is Endpoint.CHAT else {"prompt": "Hi"}
    body = {"model": "tiny", "stream": True, "max_tokens": 500, **asked, **said}
    return Call(endpoint, json.dumps(body).encode(), "req-1", Bounds())


def terms_for(call: Call, **said: Any) -> Terms:
    """The usual terms: two spare servers, the model's own tokenizer, no cap."""
    decoder = partial(LocalDecoder, tokenizer(), call.skip_special)
    return Terms(**{"legs_max": 3, "max_tokens": call.max_tokens, "decoder": decoder} | said)


class FakeSink:
    """A client that notes what it gets. full: the numbers of the writes after which it must catch up."""

    def __init__(self, full: Sequence[int] = ()) -> None:
        self.started = self.gone = False
        self.told: tuple[tuple[str, str], ...] = ()
        self.received_at = 0.0
        self.data = b""
        self.writes = 0
        self.waiting: list[Callable[[], None]] = []
        self._full = full

    def from_replica(self, name: str, overhead_s: float) -> None:
        """Nothing to note here."""

    def write(self, data: bytes) -> bool:
        self.started = True
        self.data += data
        self.writes += 1
        return self.writes not in self._full

    def on_room(self, then: Callable[[], None]) -> None:
        assert not self.waiting, "asked twice for one catching up"
        self.waiting.append(then)

    def catch_up(self) -> None:
        waiting, self.waiting = self.waiting, []
        for then in waiting:
            then()


class FakeLease:
    """A budget that tops up `step` tokens at a time, when `answer` is called, until `left` is used up."""

    def __init__(self, leased: int = PLENTY, left: int = 0, step: int = 8, low: int = 4) -> None:
        self.meter = Meter(tokens(leased), 0, low)
        self.leased = leased
        self.cached = self.reasoning = 0
        self.reasoning_is_dear = True
        self.failure: Exception | None = None
        self.left, self.step = left, step
        self._asked: list[Callable[[], None]] = []

    @property
    def counted(self) -> int:
        """Tokens of prompts and answers that were counted."""
        return self.meter.input + self.meter.spent

    def top_up(self, then: Callable[[], None]) -> None:
        if not self._asked:
            self._asked.append(then)

    def answer(self) -> None:
        asked, self._asked = self._asked, []
        for then in asked:
            granted = min(self.step, self.left)
            self.left -= granted
            self.leased += granted
            self.meter.granted(tokens(self.leased) if granted else None)
            then()


class FakeLeg:
    """What a relay did to its leg."""

    def __init__(self) -> None:
        self.paused = self.closed = False
        self.pauses = 0
        self.faults: list[Exception] = []

    def pause(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def progress(self) -> None:
        """Silence is the upstream's to test."""

    def fault(self, error: Exception) -> None:
        self.faults.append(error)


class Engine:
    """A model that always says the same: for each prompt and choice, fixed ids; EOS ends them.

    Asked with the ids of a prompt and of the beginning of an answer, it goes on from there, as a
    deterministic model does; asked to replay, it says what it is given first, event by event, and then goes on.
    It knows nothing of the gateway and finds stop strings the way vLLM does.
    """

    def __init__(self, answers: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]] = (PROMPT,)) -> None:
        self.answers, self.prompts = [list(ids) for ids in answers], [list(ids) for ids in prompts]
        self.asked: list[dict[str, Any]] = []

    def events(self, ask: Ask, per_chunk: int = 1) -> list[bytes]:
        """All events of the answer, without their empty lines."""
        body = json.loads(ask.body)
        self.asked.append(body)
        runs = self._runs(body, ask.path == Endpoint.CHAT)
        wire = Wire(ask.path == Endpoint.CHAT, f"cmpl-{len(self.asked)}", 1, "tiny", "vllm-0.32")
        out: list[bytes] = []
        if ask.path == Endpoint.CHAT:
            out += [wire.role(run.index, run.prompt, None) for run in runs]
        live = runs
        while live:
            out += [run.event(wire, per_chunk) for run in live]
            live = [run for run in live if run.finish is None]
        if (body.get("stream_options") or {}).get("include_usage"):
            prompt = sum(len(ids) for ids in {run.index // body.get("n", 1): run.prompt for run in runs}.values())
            out.append(wire.total(usage(prompt, sum(run.said for run in runs))))
        return [raw.removesuffix(b"\n\n") for raw in (*out, b"data: [DONE]\n\n")]

    def _runs(self, body: dict[str, Any], chat: bool) -> list["Run"]:
        n = body.get("n") or 1
        prompt = body.get("prompt")
        again = json.loads((body.get("vllm_xargs") or {}).get("holdfast_resume") or "null")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return [Run(0, prompt, self._rest(prompt), body, chat)]
        if isinstance(prompt, str) and len(self.prompts) > 1:
            first, count = int(prompt) * n, n
        else:
            first, count = 0, n * len(self.prompts)
        assert again is None or len(again) == count == n, "a replay is of one prompt, with an entry for each choice"
        runs = [Run(i, self.prompts[(first + i) // n], self.answers[first + i], body, chat) for i in range(count)]
        for run, chunks in zip(runs, again or (), strict=False):
            run.replay(chunks)
        return runs

    def _rest(self, ids: list[int]) -> list[int]:
        for number, answer in enumerate(self.answers):
            prompt = self.prompts[number * len(self.prompts) // len(self.answers)]
            said = ids[len(prompt) :]
            if said and ids == prompt + answer[: len(said)]:
                return answer[len(said) :]
        raise AssertionError("asked to go on after what it never said")


class Run:
    """One choice while it is said."""

    def __init__(self, index: int, prompt: list[int], ids: list[int], body: dict[str, Any], chat: bool) -> None:
        self.index, self.prompt, self.chat = index, prompt, chat
        self._ids = ids[: body["max_tokens"]]
        self._skip = body.get("skip_special_tokens", True)
        stop = body.get("stop") or ()
        self._include = bool(body.get("include_stop_str_in_output"))
        stops = (stop,) if isinstance(stop, str) else stop
        step = decode_step(prompt, self._skip)
        self._text = VllmText(step, stops, self._include, body.get("min_tokens") or 0)
        self.said = 0
        self.finish: str | None = None
        self._again: list[int] = []  # how many ids come in each event that is replayed

    def replay(self, chunks: Sequence[Sequence[int]]) -> None:
        """Say these first, whatever they are."""
        self._again = [len(chunk) for chunk in chunks]
        self._ids[: sum(self._again)] = [one for chunk in chunks for one in chunk]

    def event(self, wire: Wire, per_chunk: int) -> bytes:
        ids = self._ids[self.said : self.said + (self._again.pop(0) if self._again else per_chunk)]
        ended = ids[-1:] == [EOS]
        first = self.said == 0
        reason: str | None = None
        self.said += len(ids)
        found = self._text.update(ids, ended)
        if found is not None:
            reason, kept = found
            self.said -= len(ids) - kept
            ids, self.finish = ids[:kept], "stop"
        elif ended:
            self.finish = "stop"
        elif self.said == len(self._ids):
            self.finish = "length"
        prompt = self.prompt if first and not self.chat else None
        text = self._text.give(self.finish is not None)
        return wire.content(self.index, text, ids, prompt_ids=prompt, finish=self.finish, stop=reason)


@dataclass
class Seen:
    """What a client reads in the bytes it got."""

    text: dict[int, str] = field(default_factory=dict)
    ids: dict[int, list[int]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    stop_reason: dict[int, Any] = field(default_factory=dict)
    roles: dict[int, int] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    told: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    answer_ids: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: bytes) -> "Seen":
        seen = cls()
        *raws, rest = data.split(b"\n\n")
        assert rest == b""
        for raw in raws:
            assert not seen.done, "something came after [DONE]"
            assert seen.error is None, "something came after an error"
            if raw == b"data: [DONE]":
                seen.done = True
            else:
                seen.take(json.loads(raw.removeprefix(b"data: ")))
        return seen

    def take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = chunk["error"]
            return
        self.answer_ids.add(chunk["id"])
        self.told = chunk.get("holdfast", self.told)
        if not chunk["choices"]:
            self.usage = {k: v for k, v in chunk["usage"].items() if v is not None}
        for said in chunk["choices"]:
            index = said["index"]
            assert index not in self.finish, "a finished choice went on"
            delta = said.get("delta", {"content": said.get("text")})
            self.roles[index] = self.roles.get(index, 0) + ("role" in delta)
            self.text[index] = self.text.get(index, "") + (delta.get("content") or "")
            self.ids.setdefault(index, []).extend(said.get("token_ids") or ())
            if said["finish_reason"] is not None:
                self.finish[index], self.stop_reason[index] = said["finish_reason"], said.get("stop_reason")


BROKEN = LegEnd(Cause.BROKEN, "its connection ended in mid-answer")
FINE = LegEnd(Cause.DONE, "the stream ended without a finish_reason", 200)


class Play:
    """Runs a relay as the flow does, over servers that all hold the same engine.

    cuts: for each leg in turn, after how many of its events it is lost; None lets it finish.
    continues: what servers do by replay.
    batch: events that arrive in one read. edit: changes a leg's events before they are sent.
    """

    def __init__(
        self,
        call: Call,
        engine: Engine,
        *,
        cuts: Sequence[int | None] = (),
        batch: int = 1,
        per_chunk: int = 1,
        lease: FakeLease | None = None,
        sink: FakeSink | None = None,
        terms: Terms | None = None,
        edit: Callable[[int, list[bytes]], list[bytes]] = lambda leg, raws: raws,
        continues: Continues | None = None,
    ) -> None:
        self.continues = continues
        self.call, self.engine, self.batch, self.per_chunk, self.edit = call, engine, batch, per_chunk, edit
        self.lease, self.sink = lease or FakeLease(), sink or FakeSink()
        self.now_s = 100.0
        self.relay = Relay(call, self.sink, self.lease, terms or terms_for(call), lambda: self.now_s)
        self.legs: list[FakeLeg] = []
        self._cuts = list(cuts)
        self.sent: list[list[bytes]] = []

    @property
    def seen(self) -> Seen:
        return Seen.of(self.sink.data)

    async def run(self) -> "Play":
        """Play to the end, then check what must hold after every end."""
        while self.relay.open:
            legs = [self._leg(ask) for ask in await self.relay.asks(self.continues)]
            for part, leg, raws, end in legs:
                end = await self._feed(part, leg, raws, end)
                await self.relay.ended(part, end)
        await self.relay.finish()
        self.relay.close()
        self.check()
        return self

    def check(self) -> None:
        """Tokens delivered are the tokens counted, in every scenario."""
        relay, meter = self.relay, self.lease.meter
        assert not any(leg.faults for leg in self.legs)
        assert meter.input == relay.prompt_tokens
        assert meter.spent == relay.completion_tokens <= meter.leased
        if self.call.wants_ids:
            assert sum(map(len, self.seen.ids.values())) == relay.completion_tokens
        if relay.refusal is not None:
            assert self.sink.data == b""
            assert meter.input == meter.spent == 0
        else:
            assert self.seen.done != (self.seen.error is not None)

    def _leg(self, ask: Ask) -> tuple[Part, FakeLeg, list[bytes], LegEnd]:
        part, leg = self.relay.part(ask), FakeLeg()
        part.leg = leg
        raws = self.edit(len(self.legs), self.engine.events(ask, self.per_chunk))
        cut = self._cuts.pop(0) if self._cuts else None
        self.legs.append(leg)
        self.sent.append(raws)
        return part, leg, raws if cut is None else raws[:cut], FINE if cut is None else BROKEN

    async def _feed(self, part: Part, leg: FakeLeg, raws: list[bytes], end: LegEnd) -> LegEnd:
        for start in range(0, len(raws), self.batch):
            if leg.closed:
                break
            self.now_s += 0.01
            part.events(raws[start : start + self.batch])
            if part.behind:  # its text is being made elsewhere
                await self.relay._telling.made()
            self.settle(leg)
            if not self.relay.terms.spells_special:  # else its text, and so its end, may still be on the way
                assert self.lease.meter.spent == self.relay.completion_tokens
        return LegEnd(Cause.CLOSED) if leg.closed else end

    def settle(self, leg: FakeLeg) -> None:
        """Answer the lease and let the client catch up, until the leg may go on."""
        self.lease.answer()
        for _ in range(1000):
            if leg.closed or not leg.paused:
                return
            self.lease.answer()
            self.sink.catch_up()
        raise AssertionError("a leg was paused for good")


def ids_of(text: str) -> list[int]:
    """The token ids of a text, with EOS at their end."""
    return [*encode_ordinary(text, VOCAB), EOS]


def text_of(ids: Sequence[int], stop: Sequence[str] = (), include: bool = False, min_tokens: int = 0) -> str:
    """The text that vLLM makes of an uninterrupted answer."""
    text = VllmText(decode_step(PROMPT), stop, include, min_tokens)
    for one in ids:
        if text.update([one], one == EOS) is not None:
            break
    return text.text
