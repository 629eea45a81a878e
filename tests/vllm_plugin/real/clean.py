"""Clean requests by seed, in a crowd, with hardly any room: nothing is damaged, so nothing may be found.

    .venv-vllm/bin/python -m tests.vllm_plugin.real.clean OUT.json --setting recompute --count 5000 [--drawn]

Each request has its own seed. --drawn: with temperatures, some wanting two answers, and prompts that are computed at
once: vLLM 0.32 on the CPU falls over a seeded request whose prompt is computed in pieces. Without it all are greedy,
and computed in pieces. --every: keep the answers of one in so many, and, without the plugin, ask only those.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.vllm_plugin.real.engine import Engine
from tests.vllm_plugin.real.injections import SETTINGS, store_of

AT_ONCE = 48
PIECE = 256  # tokens
ROOM = {"num_gpu_blocks_override": 72, "max_model_len": 1024, "max_num_seqs": 24}
PREFIXES = 24
ALARMS = (
    "holdfast_pages_corrupt", "holdfast_chains_broken", "holdfast_requests_recomputed", "holdfast_requests_aborted",
    "holdfast_pages_evicted", "holdfast_pages_withdrawn",
)  # fmt: skip
COUNTED = (
    "holdfast_pages_verified", "holdfast_pages_scrubbed", "holdfast_pages_sealed", "holdfast_pages_loaded",
    "holdfast_prefix_hit_tokens", "vllm:num_preemptions",
)  # fmt: skip


class Clean(NamedTuple):
    """One request."""

    prompt: list[int]
    tokens: int
    salt: str | None
    sampling: dict[str, Any]

    @classmethod
    def of(cls, seed: int, drawn: bool) -> "Clean":
        """Prefixes that others have too, some of them long; one in ten has a salt. drawn: by chance, and not greedy."""
        rng = random.Random(seed)
        number = int(PREFIXES * rng.random() ** 2)  # some are asked for more often
        prefix = random.Random(-1 - number)
        shared = [prefix.randrange(10, 8000) for _ in range(prefix.choice([20, 64, 100, 150, 300]))]
        own = rng.choice([1, 2, 5, 20, 20, 40, 40, 60, 400 if rng.random() < 0.1 else 30])
        sampling: dict[str, Any] = {"output_kind": "final"}
        if drawn:
            sampling |= {"temperature": 1.0, "seed": seed, "n": rng.choice([1, 1, 1, 2])}
        return cls(
            shared + [rng.randrange(10, 8000) for _ in range(own)],
            rng.choice([4, 5, 6, 7, 8, 8, 8, 60]),
            rng.choice("ab") if rng.random() < 0.1 else None,
            sampling,
        )


def asked(engine: Engine, seeds: range, drawn: bool, every: int) -> dict[int, list[list[int]]]:
    """All of them, so many at once. Returns the answers of those to be kept, by seed."""
    left, running, kept = iter(seeds), dict[str, int](), dict[int, list[list[int]]]()
    done, said_s = 0, time.monotonic()
    while True:
        while len(running) < AT_ONCE and (seed := next(left, None)) is not None:
            one = Clean.of(seed, drawn)
            running[engine.add(one.prompt, one.tokens, one.salt, **one.sampling)] = seed
        if not running:
            return kept
        engine.step()
        for name in [name for name in running if name in engine.ended]:
            seed, answers = running.pop(name), engine.done.pop(name)
            assert engine.ended.pop(name) == "length", f"seed {seed}"
            done += 1
            if seed % every == 0:
                kept[seed] = answers
            for forgotten in (engine.tokens, engine.tables, engine.chains):
                forgotten.pop(name, None)
        if time.monotonic() - said_s > 5:
            said_s = time.monotonic()
            print(f"clean: {done} of {len(seeds)}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="recompute")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--drawn", action="store_true")
    given = parser.parse_args()
    plugged = SETTINGS[given.setting] is not None
    seeds = range(given.first, given.first + given.count, 1 if plugged else given.every)
    with tempfile.TemporaryDirectory() as folder, store_of(given.setting) as (settings, _):
        piece = ROOM["max_num_seqs"] * ROOM["max_model_len"] if given.drawn else PIECE
        engine = Engine(Path(folder), settings, max_num_batched_tokens=piece, **ROOM)
        kept = asked(engine, seeds, given.drawn, given.every)
        counted = {name: engine.metric(name) for name in (*ALARMS, *COUNTED)}
        engine.stop()
    given.out.write_text(json.dumps({"requests": len(seeds), "answers": kept, "counted": counted}))


if __name__ == "__main__":
    main()
