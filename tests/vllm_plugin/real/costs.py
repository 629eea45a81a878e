"""One vLLM that is given rounds of work by a line each on standard input, and says what each has cost.

    .venv-vllm/bin/python -m tests.vllm_plugin.real.costs --plugin '{"scrub":"all"}' [--size tiny] [--at-once 24]

A line is {"seed": 1, "requests": 120, "tokens": 32}. What it says begins with RESULT; everything else is vLLM's.
Between lines it waits, and costs nothing.
"""

import argparse
import functools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm_plugin.real.engine import MODEL, Engine, prompts

FAMILIES, SHARED, OWN = 8, 320, 40
BLOCKS = 1024
RESULT = "RESULT "
HOOKS = (  # of the connector, none of which calls another one
    "get_num_new_matched_tokens", "update_state_after_alloc", "build_connector_meta", "hear", "emitted",
    "request_finished_all_groups", "bind_connector_metadata", "start_load_kv", "get_finished", "wait_for_save",
    "build_connector_worker_meta", "get_kv_connector_stats",
)  # fmt: skip
LARGE = "hundred-million"  # 109 million weights
SIZES = {LARGE: {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8}}


class Hooked:
    """Measures the time of the processor that is spent in the plugin's hooks."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def hook(self, owner: type) -> None:
        """From now on."""
        for name in HOOKS:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kw: Any) -> Any:
            began_s = time.thread_time()
            try:
                return original(*args, **kw)
            finally:
                self.spent_s += time.thread_time() - began_s

        return timed


def round_of(
    engine: Engine, hooked: Hooked, at_once: int, *, seed: int, requests: int, tokens: int
) -> dict[str, float]:
    """So many requests, so many at once, of families with long prefixes. The cache is empty before."""
    engine.forget()
    flat = [one for family in prompts(seed, FAMILIES, -(-requests // FAMILIES), SHARED, OWN) for one in family]
    random.Random(seed).shuffle(flat)
    left, began_s, first_s = flat[:requests], dict[str, float](), dict[str, float]()
    steps, digest_s, hooks_s = 0, engine.metric("holdfast_digest_seconds"), hooked.spent_s
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    while left or began_s:
        while left and len(began_s) < at_once:
            began_s[engine.add(left.pop(), tokens)] = time.perf_counter()
        engine.step()
        steps += 1
        now_s = time.perf_counter()
        for name in began_s.keys() & engine.tokens.keys():
            first_s.setdefault(name, now_s - began_s[name])
        for name in began_s.keys() & engine.ended.keys():
            del began_s[name]
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {
        "wall_s": wall_s, "cpu_s": cpu_s, "steps": steps, "tokens": requests * tokens,
        "ttft_s": statistics.median(first_s.values()), "digest_s": engine.metric("holdfast_digest_seconds") - digest_s,
        "hooks_s": hooked.spent_s - hooks_s,
    }  # fmt: skip


def made(size: str) -> Path:
    """A model of that size, made if it is not there."""
    if size == "tiny":
        return MODEL
    from gateway.local import tiny_model

    folder = MODEL.with_name(f"{size}-model-float32")
    if not tiny_model.is_complete(folder):
        tiny_model.SIZES |= SIZES
        tiny_model.make(folder, "float32", size)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugin", type=json.loads, help="what goes into kv_connector_extra_config; none if left out")
    parser.add_argument("--size", choices=["tiny", *SIZES], default="tiny")
    parser.add_argument("--at-once", type=int, default=24)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            Path(folder), given.plugin, model=str(made(given.size)), num_gpu_blocks_override=BLOCKS,
            max_num_seqs=given.at_once,
        )  # fmt: skip
        hooked = Hooked()
        if given.plugin is not None:
            from vllm_plugin.connector import HoldfastConnector

            hooked.hook(HoldfastConnector)
        print(RESULT + json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            said: dict[str, Any] = json.loads(line)
            print(RESULT + json.dumps(round_of(engine, hooked, given.at_once, **said)), flush=True)
            for known in (engine.tokens, engine.ended, engine.done, engine.tables, engine.chains):
                known.clear()


if __name__ == "__main__":
    main()
