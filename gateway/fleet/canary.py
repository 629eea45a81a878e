"""A request for one token, and what /metrics says meanwhile: whether a replica computes."""

import re
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from guards.evidence import Evidence

# Counters that move whenever vLLM's engine has done anything; they count from the engine's own reports.
_COUNTER = re.compile(rb"^vllm:(?:generation_tokens|prompt_tokens)_total(?:\{[^}\n]*\})? ([0-9.eE+]+)", re.MULTILINE)

COMPLETIONS = "/v1/completions"


class Answer(Protocol):
    """A fetched answer, as far as the fleet reads it."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def reached(self) -> bool: ...
    @property
    def silent(self) -> bool: ...


Ask = Callable[[str, str, bytes | None, float], Awaitable[Answer]]  # replica name, path, body, timeout in seconds


class Canary:
    """Asks a replica for one token. The house pays for it.

    metrics_s: how long /metrics may take, in seconds.
    """

    def __init__(self, ask: Ask, metrics_s: float) -> None:
        self._ask, self._metrics_s = ask, metrics_s

    async def sing(self, name: str, model: str | None, wait_s: float) -> bool | None:
        """Tell whether one token came in time; None where the server cannot be asked for it.

        One that is gone, or refuses (an embedding model has no tokens to give), is not silent: None.
        """
        if model is None:
            return None
        said = {"model": model, "prompt": [1], "max_tokens": 1, "temperature": 0}
        answer = await self._ask(name, COMPLETIONS, msgspec.json.encode(said), wait_s)
        if answer.silent:
            return False
        return True if answer.status == 200 else None

    async def look(self, name: str, model: str | None, wait_s: float) -> Evidence:
        """Gather what can be asked for: a canary, and whether the counters of tokens moved while it had time."""
        before, awake = await self._counted(name)
        sung = await self.sing(name, model, wait_s)
        if sung:
            return Evidence(canary=True)
        after, answered = await self._counted(name)
        known = before > 0 and after > 0  # at 0 they may be switched off
        computed = after > before if known else None
        return Evidence(canary=sung, metrics=answered, computed=computed, whole=awake or not answered)

    async def _counted(self, name: str) -> tuple[float, bool]:
        answer = await self._ask(name, "/metrics", None, self._metrics_s)
        return sum(map(float, _COUNTER.findall(answer.body))), not answer.silent
