"""The stub's engine where it has limits: requests are batched, wait for room and are preempted, as vLLM's are."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random
from typing import Any

from loadtests.batching import Costs, Engine, Shape, Stream, What
from loadtests.stub_engine import Engine as Clock
from loadtests.stub_engine import Task

# Small, so that two cores can offer two of them five times what they can do, with a gateway before them: about eleven
# answers a second each, of prompts and answers of a few hundred tokens.
SHAPE = Shape(batched_tokens_max=512, seqs_max=64, kv_blocks=2_500)
COSTS = Costs(step_s=0.010, prefill_token_s=50e-6, decode_s=260e-6)

Hear = Callable[[int], None]


class Computer:
    """Runs a batching engine by the stub's clock, so that it stands still and is slow when that is.

    Each stream's `hear` is told how many tokens were computed since it was told last, and may have others come or go.
    """

    def __init__(self, clock: Clock, shape: Shape, costs: Costs, rng: Random) -> None:
        self._clock = clock
        self._engine = Engine(shape, costs, rng, each=True)
        self._hears: dict[Stream, Hear] = {}
        self._timer: Task | None = None

    def enter(self, input_tokens: int, output_tokens: int, cached: int, hear: Hear) -> Stream:
        """Begin to compute an answer of so many tokens."""
        stream = Stream("", input_tokens, output_tokens, cached)
        self._engine.arrive(stream, self._clock.time())
        self._hears[stream] = hear
        self._wait()
        return stream

    def leave(self, stream: Stream) -> None:
        """Compute no more of it; safe to call again."""
        if self._hears.pop(stream, None) is not None:
            self._engine.cancel(stream, self._clock.time())

    def gauges(self) -> dict[str, float]:
        """What /metrics says of it, by vLLM's names."""
        engine = self._engine
        return {
            "num_requests_running": float(len(engine.running)),
            "num_requests_waiting": float(len(engine.waiting)),
            "kv_cache_usage_perc": engine.kv_use,
            "num_preemptions_total": float(engine.preemptions),
        }

    def _wait(self) -> None:
        """Be back when the step in progress ends."""
        if self._timer is None and self._engine.next_s is not None:
            self._timer = self._clock.later(self._engine.next_s - self._clock.time(), self._tell)

    def _tell(self) -> None:
        self._timer = None
        computed: Counter[Stream] = Counter()
        for event in self._engine.advance(self._clock.time()):
            computed[event.stream] += event.what in (What.FIRST, What.TOKEN)
        self._wait()
        for stream, tokens in computed.items():
            hear = self._hears.get(stream)
            if hear is not None and tokens:
                hear(tokens)


def computer(said: str, window: int, clock: Clock, rng: Random) -> Computer:
    """One as the command line has it: a JSON object of what differs from SHAPE and COSTS. Raises ValueError."""
    given = json.loads(said)
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    shape, costs = (_changed(one, given) for one in (SHAPE, COSTS))
    if given:
        raise ValueError(f"unknown: {', '.join(sorted(given))}")
    if shape.blocks(window) > shape.kv_blocks:
        raise ValueError(f"kv_blocks: {shape.kv_blocks} cannot hold the window of {window} tokens")
    return Computer(clock, shape, costs, rng)


def _changed(default: Any, given: dict[str, Any]) -> Any:
    """A copy with those fields that are given, which are taken out."""
    known = {one.name: type(getattr(default, one.name)) for one in fields(default)}
    changes = {name: kind(given.pop(name)) for name, kind in known.items() if name in given}
    bad = [name for name, value in changes.items() if value < 0 or (known[name] is int and not value)]
    if bad:
        raise ValueError(f"{', '.join(bad)}: not above 0")
    return replace(default, **changes)
