"""Real vLLM servers with the plugin that share one page store, and long conversations to ask them for."""

import json
import os
import random
import re
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gateway.local.engine import Engine, Progress, stop_fleet
from gateway.local.plugged import installed, plugin_arguments
from tests.processes import ROOT, until

BLOCK = 32  # tokens of a page: the smallest that attention on the CPU takes
PROMPT_TOKENS = 3000
BLOCKS = 2048  # of each server's cache, a quarter of a gigabyte: twenty such conversations
STORE_BYTES = 512 << 20
STEP_TOKENS = 512  # of prompts, in a step: so that answers that have begun go on beside them
CALL_S_MAX = 60.0
UNTRIED = "not tried yet"  # says the plugin of what it can continue, until it knows
READY_S_MAX = 600.0  # four servers that start at once, on two cores that others want too
FAMILY = "_total"  # what Prometheus adds to the names of counters


@contextmanager
def paged_fleet(
    count: int,
    model: Path,
    folder: Path,
    *,
    store_bytes: int | None = STORE_BYTES,
    blocks: int = BLOCKS,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Iterator[list[Engine]]:
    """Servers with the plugin, as if it were installed, warm, on one store in shared memory that is removed after.

    store_bytes: its size; None is the plugin without a store. blocks: of each server's own cache. Logs and what is
    installed are in `folder`, made here.
    """
    folder.mkdir(parents=True)
    store = None if store_bytes is None else f"{store_url(folder)}?size={store_bytes}"
    said = [*plugin_arguments(store, BLOCK), "--max-num-batched-tokens", str(STEP_TOKENS)]
    said += [*PARSERS, "--num-gpu-blocks-override", str(blocks)]
    paths = os.pathsep.join([str(installed(folder / "installed")), str(ROOT)])
    variables = {"PYTHONPATH": paths, "VLLM_PLUGINS": "holdfast", "VLLM_SERVER_DEV_MODE": "1", **(environment or {})}
    fleet = [
        Engine(model, log=folder / f"vllm-{number}.log", arguments=[*said, *arguments], environment=variables)
        for number in range(1, count + 1)
    ]
    try:
        start(fleet, on_progress)
        yield fleet
    finally:
        stop_fleet(fleet)
        shutil.rmtree(store_url(folder).removeprefix("lmdb://"), ignore_errors=True)


def store_url(folder: Path) -> str:
    """Where the store is that a fleet of this folder shares."""
    return f"lmdb:///dev/shm/holdfast-{os.getpid()}-{folder.name}"


def start(engines: Sequence[Engine], on_progress: Progress | None = None) -> None:
    """Start these side by side, and return when they are warm; also such as were killed, on their ports."""
    for engine in engines:
        engine.stop()
        engine.start()
    for engine in engines:
        engine.wait_ready(READY_S_MAX, on_progress)


# ---------------------------------------------------------------- what servers say


def metrics(engine: Engine) -> dict[str, float]:
    """All samples at /metrics, summed over their labels, by name without `_total`."""
    with urllib.request.urlopen(engine.url + "/metrics", timeout=CALL_S_MAX) as response:
        lines = response.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        sample = re.fullmatch(r"([\w:]+)(?:\{.*\})? (\S+)", line)
        if sample is not None:
            name = sample[1].removesuffix(FAMILY)
            found[name] = found.get(name, 0.0) + float(sample[2])
    return found


def status(engine: Engine) -> dict[str, Any]:
    """What the plugin says of itself."""
    with urllib.request.urlopen(engine.url + "/holdfast/status", timeout=CALL_S_MAX) as response:
        told: dict[str, Any] = json.loads(response.read())
        return told


def forget_pages(engine: Engine) -> None:
    """Empty the server's own prefix cache: what it reads next is in the store, or is computed. It must be idle."""
    request = urllib.request.Request(engine.url + "/reset_prefix_cache", b"", method="POST")
    with urllib.request.urlopen(request, timeout=CALL_S_MAX) as response:
        assert response.status == 200


def brought(before: Mapping[str, float], after: Mapping[str, float]) -> int:
    """Tokens that a server did not compute between two looks at `metrics`: it had their pages, or loaded them."""
    hit = after["holdfast_prefix_hit_tokens"] - before["holdfast_prefix_hit_tokens"]
    return round(hit + BLOCK * (after["holdfast_pages_loaded"] - before["holdfast_pages_loaded"]))


def tail(tokens: int) -> int:
    """How many of so many tokens no full page can bring: vLLM computes the last one at least."""
    return (tokens - 1) % BLOCK + 1


# ---------------------------------------------------------------- conversations


@dataclass(frozen=True)
class Kind:
    """A kind of request. replayed: it only goes on exactly at a server that says so (`continues` in its status)."""

    name: str
    more: Mapping[str, Any] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    replayed: bool = False


SCHEMA = {
    "type": "object", "properties": {"note": {"type": "string"}, "more": {"type": "string"}},
    "required": ["note", "more"], "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "write", "parameters": SCHEMA}}
NAMED, CHOSEN = {"name": "note", "schema": SCHEMA}, {"type": "function", "function": {"name": "write"}}
PARSERS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
ENDS = {"ignore_eos": False}  # of answers that have a form: they are over when it is whole
KINDS = (
    Kind("greedy"),
    Kind("repetition_penalty", {"repetition_penalty": 1.2}),
    Kind("frequency_penalty", {"frequency_penalty": 0.9}),
    Kind("logit_bias", {"logit_bias": {"300": 1.5, "301": 1.4}, "repetition_penalty": 1.3}),
    Kind("allowed_token_ids", {"allowed_token_ids": list(range(300, 500)), "repetition_penalty": 1.2}),
    Kind("stop strings", {"stop": ["is never said", "nor is this"], "repetition_penalty": 1.1}),
    Kind("min_tokens", {"min_tokens": 40, "repetition_penalty": 1.4}),
    Kind("completions, of ids", {"repetition_penalty": 1.15}, "/v1/completions"),
    Kind("seed, temperature 0.8", {"temperature": 0.8, "seed": 7}, replayed=True),
    Kind("seed, top_p, presence_penalty", {"temperature": 1.1, "top_p": 0.9, "seed": 8, "presence_penalty": 0.5},
         replayed=True),
    Kind("JSON schema", {"response_format": {"type": "json_schema", "json_schema": NAMED}, **ENDS}, replayed=True),
    Kind("a named tool", {"tools": [TOOL], "tool_choice": CHOSEN, **ENDS}, replayed=True),
)  # fmt: skip


def kinds_of(engines: Sequence[Engine]) -> list[Kind]:
    """Those that each of these servers continues exactly for another. Waits until they have tried."""
    replay = all([until(partial(_tried, engine), CALL_S_MAX)["continues"] for engine in engines])
    return [kind for kind in KINDS if replay or not kind.replayed]


def _tried(engine: Engine) -> dict[str, Any] | None:
    """What it says of itself, once it knows what it can continue."""
    told = status(engine)
    return None if UNTRIED in (told.get("continues_not") or "") else told


def conversation(kind: Kind, tokenizer: Tokenizer, seed: int, tokens: int, answer_tokens: int) -> dict[str, Any]:
    """A streamed request of that kind, whose prompt has about so many tokens, and begins like no other seed's."""
    rng = random.Random(f"{kind.name} {seed}")
    words = [f"{rng.randrange(10**6)}:"]
    known = sorted(word for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha())
    counted = 0
    while counted < tokens:
        words += [word[1:] for word in rng.choices(known, k=max(1, tokens - counted))]
        counted = len(tokenizer.encode(" ".join(words)).ids)
    ids = tokenizer.encode(" ".join(words)).ids[:tokens]
    said = {"prompt": ids} if "completions" in kind.name else {"messages": [_message(tokenizer.decode(ids))]}
    return {
        "model": "tiny", "temperature": 0, "stream": True, "max_tokens": answer_tokens, "ignore_eos": True,
        **said, **kind.more,
    }  # fmt: skip


def _message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
