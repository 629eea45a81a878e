"""One vLLM engine as a discrete event simulation: continuous batching with chunked prefill, step by step. Pure.

It follows the scheduler of vLLM V1 where that decides who waits: running streams first, in the order they came;
prefill in chunks, of what is left of a step's tokens; when the KV cache is full the youngest is preempted, and
computes anew; nobody new is let in before there is room. What a step lasts is a sum, `Costs`, and noise. Simplified:
blocks of a shared prefix are counted for each stream that has it, and what was preempted keeps its cached prefix.

Nobody waits here: `advance` lives until a given time, and says what happened. `next_s` is when there is something to
say. Simulations move it as they like; the stub upstream moves it with the real time (stub_computer.py).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import exp
from random import Random
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Costs:
    """How long a step lasts: the sum of these, times lognormal noise.

    step_s: whatever is in it. prefill_token_s: per token of prefill; decode_s: per stream that decodes.
    kv_token_s: per token in the KV cache of those that are computed.
    noise: sigma of the logarithm. stall_share, stall_s: so many steps last so much longer: a garbage collection, a
        neighbour.
    """

    step_s: float = 0.006
    prefill_token_s: float = 80e-6
    decode_s: float = 50e-6
    kv_token_s: float = 25e-9
    noise: float = 0.05
    stall_share: float = 0.0005
    stall_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine has room for: vLLM's max_num_batched_tokens, max_num_seqs and its blocks of KV cache."""

    batched_tokens_max: int = 2048
    seqs_max: int = 256
    kv_blocks: int = 28_000
    block_tokens: int = 16

    def blocks(self, tokens: int) -> int:
        """So many are needed for these tokens."""
        return -(-tokens // self.block_tokens)


class Stream:
    """One request in the engine. Times in seconds.

    cached: tokens of its prompt that need not be computed; at least one must be.
    computed: tokens in the KV cache; emitted: tokens of the answer so far.
    first_s, last_s: when its first and its last token came; gap_s_max: the longest time between two of them.
    """

    __slots__ = (
        "arrived_s", "blocks", "cached", "cancelled", "computed", "emitted", "first_s", "gap_s_max", "input_tokens",
        "last_s", "name", "output_tokens", "preempted",
    )  # fmt: skip

    def __init__(self, name: str, input_tokens: int, output_tokens: int, cached: int = 0) -> None:
        assert min(input_tokens, output_tokens) > 0, "a request has a prompt and an answer"
        self.name, self.input_tokens, self.output_tokens = name, input_tokens, output_tokens
        self.cached = max(0, min(cached, input_tokens - 1))
        self.computed = self.emitted = self.blocks = self.preempted = 0
        self.arrived_s = self.last_s = self.gap_s_max = 0.0
        self.first_s: float | None = None
        self.cancelled = False

    @property
    def due(self) -> int:
        """Tokens to compute before its next token: one while it decodes."""
        return self.input_tokens + self.emitted - self.computed

    @property
    def to_prefill(self) -> int:
        """Tokens to compute before it decodes; before it was let in, what is cached does not count."""
        if self.computed:
            return self.due if self.due > 1 or not self.emitted else 0
        return self.due - self.cached

    @property
    def gap_s(self) -> float | None:
        """Between its tokens, in the mean; None where there were less than two."""
        if self.first_s is None or self.emitted < 2:
            return None
        return (self.last_s - self.first_s) / (self.emitted - 1)


class What(Enum):
    """Something that happened to a stream."""

    FIRST = "its first token"
    TOKEN = "a later one"
    DONE = "its last token"
    PREEMPTED = "its KV cache was taken from it"
    CANCELLED = "it was taken out"


class Event(NamedTuple):
    """What happened to whom, and when."""

    at_s: float
    what: What
    stream: Stream


class Engine:
    """Streams wait, run and end. Time only moves by `advance`, and never back.

    each: whether every token is told, or only the first one.
    waiting: not let in yet, or preempted; running: let in, whether they are in prefill or decode.
    preemptions: since its start. next_s: when the step in progress ends; None while there is nothing to do.
    """

    def __init__(self, shape: Shape, costs: Costs, rng: Random, *, each: bool = False) -> None:
        self.shape, self.costs, self._rng, self._each = shape, costs, rng, each
        self.waiting: deque[Stream] = deque()
        self.running: list[Stream] = []
        self.blocks_free = shape.kv_blocks
        self.steps = self.preemptions = 0
        self.busy_s = 0.0
        self.next_s: float | None = None
        self._now_s = 0.0
        self._step: list[tuple[Stream, int]] = []
        self._told: list[Event] = []

    # -- what is seen of it

    @property
    def kv_use(self) -> float:
        """The share of blocks in use."""
        return 1.0 - self.blocks_free / self.shape.kv_blocks

    @property
    def kv_tokens(self) -> int:
        """Room of the blocks in use, in tokens."""
        return (self.shape.kv_blocks - self.blocks_free) * self.shape.block_tokens

    @property
    def tokens_ahead(self) -> int:
        """Tokens of prefill that whoever arrives now has before itself."""
        return sum(one.to_prefill for one in self.waiting) + sum(one.to_prefill for one in self.running)

    @property
    def idle(self) -> bool:
        return self.next_s is None

    # -- what is done to it

    def arrive(self, stream: Stream, now_s: float) -> None:
        """One more. It waits for the end of the step in progress. Raises ValueError where it could never run."""
        if self.shape.blocks(stream.input_tokens + stream.output_tokens) > self.shape.kv_blocks:
            raise ValueError(f"{stream.name}: its prompt and answer never fit the KV cache")
        self._live_until(now_s)
        stream.arrived_s = now_s
        self.waiting.append(stream)
        if self.next_s is None:
            self._begin(now_s)

    def cancel(self, stream: Stream, now_s: float) -> None:
        """Take one out; one that runs goes with the end of the step in progress. One that is over stays so."""
        self._live_until(now_s)
        if stream in self.waiting:
            self.waiting.remove(stream)
            self._leave(stream, now_s)
        elif stream in self.running:
            stream.cancelled = True

    def advance(self, until_s: float) -> list[Event]:
        """Live until then; give what happened since the last time."""
        self._live_until(until_s)
        told, self._told = self._told, []
        return told

    def run_dry(self) -> Iterator[Event]:
        """Live until all streams are over."""
        while self.next_s is not None:
            yield from self.advance(self.next_s)

    # -- steps

    def _live_until(self, until_s: float) -> None:
        assert until_s >= self._now_s, "time does not go back"
        while self.next_s is not None and self.next_s <= until_s:
            now_s, self.next_s = self.next_s, None
            self._finish(now_s)
            self._begin(now_s)
        self._now_s = until_s

    def _begin(self, now_s: float) -> None:
        """Fill a step: those that run, then those that wait; none where nobody is there."""
        self._now_s = now_s
        step: list[tuple[Stream, int]] = []
        budget = self._go_on(step, now_s)
        if len(step) == len(self.running):  # else tokens or blocks are short already
            self._let_in(step, budget)
        self._step = step
        if step:
            lasts_s = self._lasts_s(step)
            self.steps += 1
            self.busy_s += lasts_s
            self.next_s = now_s + lasts_s

    def _go_on(self, step: list[tuple[Stream, int]], now_s: float) -> int:
        """Those that run, in the order they came; the tokens that are left of the step."""
        budget, at = self.shape.batched_tokens_max, 0
        size = self.shape.block_tokens
        while at < len(self.running) and budget:
            stream = self.running[at]
            take = min(stream.input_tokens + stream.emitted - stream.computed, budget)
            if stream.computed + take > stream.blocks * size and not self._grow(stream, take, now_s):
                break  # it was the youngest itself
            step.append((stream, take))
            budget -= take
            at += 1
        return budget

    def _let_in(self, step: list[tuple[Stream, int]], budget: int) -> None:
        """Those that wait, the first that came first, while there are tokens, seats and blocks."""
        while self.waiting and budget and len(self.running) < self.shape.seqs_max:
            stream = self.waiting[0]
            take = min(stream.due - stream.cached, budget)
            blocks = self.shape.blocks(stream.cached + take)
            if blocks > self.blocks_free:
                return
            self.waiting.popleft()
            self.running.append(stream)
            self.blocks_free -= blocks
            stream.blocks, stream.computed = blocks, stream.cached
            step.append((stream, take))
            budget -= take

    def _grow(self, stream: Stream, take: int, now_s: float) -> bool:
        """Room for so many tokens more, from the youngest if need be; False where that is the stream itself."""
        more = self.shape.blocks(stream.computed + take) - stream.blocks
        while more > self.blocks_free:
            victim = self.running.pop()
            self.blocks_free += victim.blocks
            victim.blocks = victim.computed = 0
            victim.preempted += 1
            self.preemptions += 1
            self.waiting.appendleft(victim)
            self._told.append(Event(now_s, What.PREEMPTED, victim))
            if victim is stream:
                return False
        self.blocks_free -= more
        stream.blocks += more
        return True

    def _lasts_s(self, step: list[tuple[Stream, int]]) -> float:
        costs, rng = self.costs, self._rng
        decoding = sum(take == 1 for _, take in step)
        prefill = sum(take for _, take in step) - decoding
        kv = sum(stream.computed for stream, _ in step)
        lasts_s = costs.step_s + costs.prefill_token_s * prefill + costs.decode_s * decoding + costs.kv_token_s * kv
        lasts_s *= exp(rng.gauss(0.0, costs.noise))
        return lasts_s + (costs.stall_s if rng.random() < costs.stall_share else 0.0)

    def _finish(self, now_s: float) -> None:
        """What was computed is there; who has all its prompt computed has a token more."""
        ended = False
        for stream, take in self._step:
            stream.computed += take
            if stream.computed == stream.input_tokens + stream.emitted and not stream.cancelled:
                self._emit(stream, now_s)
            if stream.cancelled or stream.emitted == stream.output_tokens:
                ended = True
        if ended or any(stream.cancelled for stream in self.running):
            self._sweep(now_s)

    def _emit(self, stream: Stream, now_s: float) -> None:
        stream.emitted += 1
        if stream.first_s is None:
            stream.first_s = now_s
            self._told.append(Event(now_s, What.FIRST, stream))
        else:
            stream.gap_s_max = max(stream.gap_s_max, now_s - stream.last_s)
            if self._each:
                self._told.append(Event(now_s, What.TOKEN, stream))
        stream.last_s = now_s

    def _sweep(self, now_s: float) -> None:
        """Those that are over give their blocks back."""
        kept = []
        for stream in self.running:
            if stream.cancelled:
                self._leave(stream, now_s)
            elif stream.emitted == stream.output_tokens:
                self._told.append(Event(now_s, What.DONE, stream))
                self._free(stream)
            else:
                kept.append(stream)
        self.running = kept

    def _leave(self, stream: Stream, now_s: float) -> None:
        stream.cancelled = True
        self._free(stream)
        self._told.append(Event(now_s, What.CANCELLED, stream))

    def _free(self, stream: Stream) -> None:
        self.blocks_free += stream.blocks
        stream.blocks = 0
