"""Servers as schedulers see them: continuous batching, prefill in chunks, a KV cache of so many tokens, preemption."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Job:
    """A request at a server. left: tokens of it that are to be computed before it brings any."""

    prompt: int
    answer: int
    on_token: Callable[["Job"], None]
    left: int = 0
    tokens: int = 0

    @property
    def kv(self) -> int:
        """What it takes of the cache."""
        return self.prompt + self.tokens


@dataclass
class Engine:
    """One server. Times in seconds: a step takes base_s, and so much for each token of prompts and for each stream.

    stopped: it hangs: no step ever ends.
    """

    kv_tokens: int = 60_000
    streams_max: int = 128
    chunk: int = 2_048
    base_s: float = 0.010
    prefill_s: float = 0.00005
    stream_s: float = 0.0001
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    preemptions: int = 0
    kv: int = 0
    stopped: bool = False

    @property
    def ahead(self) -> int:
        """Tokens of prompts that are to be computed yet."""
        return sum(job.left for job in self.running) + sum(job.left for job in self.waiting)

    def add(self, job: Job) -> None:
        """A request comes."""
        job.left = job.prompt
        self.waiting.append(job)

    def step(self) -> tuple[float, list[Job]]:
        """Compute one step: how long it takes, and which requests have a token at its end."""
        while self.waiting and len(self.running) < self.streams_max:
            if self.running and self.kv + self.waiting[0].kv > self.kv_tokens:
                break
            self.running.append(self.waiting.popleft())
            self.kv += self.running[-1].kv
        while len(self.running) > 1 and self.kv + len(self.running) > self.kv_tokens:
            self._preempt()
        budget, heard = self.chunk, []
        for job in self.running:
            if job.left:
                done = min(job.left, budget)
                job.left -= done
                budget -= done
            if not job.left:
                heard.append(job)
        return self.base_s + self.prefill_s * (self.chunk - budget) + self.stream_s * len(self.running), heard

    def deliver(self, heard: list[Job]) -> None:
        """The step is over: tokens come, and who has all of them leaves."""
        for job in heard:
            job.tokens += 1
            self.kv += 1
            if job.tokens == job.answer:
                self.running.remove(job)
                self.kv -= job.kv
            job.on_token(job)

    def _preempt(self) -> None:
        job = self.running.pop()
        self.kv -= job.kv
        job.left = job.kv
        self.waiting.appendleft(job)
        self.preemptions += 1
