"""A larger model, where computing a prompt takes seconds: how long until the standby's first token, by its length."""

import asyncio
import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from gateway.local.engine import Engine, vllm_python
from loadtests.cutting_proxy import Cut, CuttingProxy
from tests.answers import Answer, ask
from tests.processes import TRUSTING, Gateway
from tests.prove import moves
from tests.prove.plots import svg
from tests.prove.report import EVIDENCE
from tests.prove.state import ROOT, SEED, keep, provenance, results, say
from tests.shared_pages import KINDS, brought, conversation, forget_pages, metrics, paged_fleet

NAME = "recovery"
SIZE = "hundred-million"  # 109 million weights
WEIGHTS = "109 million"
TOKENS = (1024, 2048, 4096, 8192)
LOOKS = {1024: 5, 2048: 3, 4096: 2, 8192: 2}  # at each length
ANSWER_TOKENS, CUT_AFTER = 48, 24
MADE_S_MAX = 300.0
RATIO = 11.0  # goal, at the longest
PAGES, WITHOUT = "pages", "without"
BLOCKS, STORE_BYTES = 384, 640 << 20  # a page is a megabyte: one prompt of the longest, and all of them
# The model itself goes on beyond its 4,096 positions as before them: RoPE has no table.
ARGUMENTS = (
    "--max-model-len", "8448", "--max-num-seqs", "4", "--hf-overrides", json.dumps({"max_position_embeddings": 8448}),
)  # fmt: skip
ANSWER_LIMIT = aiohttp.ClientTimeout(total=600)
PATIENT = {"first_token_s": 600, "between_tokens_s": 300, "canary_s": 300}  # a step may take longer than 2 s
QUEUED, PREFILLED = "vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum"


@dataclass(frozen=True)
class Standby:
    """A server, and the gateway that has it as its standby."""

    name: str
    engine: Engine
    gateway: Gateway


def run(count: int = max(LOOKS.values())) -> None:
    """Each length: the answer, computed once; then cuts, with a standby that has the pages in its store and without.

    count: looks at each length, at most.
    """
    if NAME in results():
        return
    asyncio.run(_run(count))


async def _run(count: int) -> None:
    model = await asyncio.to_thread(_made)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    proxy = CuttingProxy(lambda number, request: Cut(CUT_AFTER))
    with ExitStack() as stack:
        serving, standbys = await asyncio.to_thread(stack.enter_context, _fleets(model))
        host, _, port = serving.address.rpartition(":")
        url = f"http://127.0.0.1:{await proxy.start(host, int(port))}"
        folder = stack.enter_context(moves.folder_of(f"{NAME}-gateways"))
        more: dict[str, Any] = {"health": TRUSTING, "share_prefix_cache": True, "timeouts": PATIENT}
        both = [
            Standby(name, engine, stack.enter_context(
                await asyncio.to_thread(moves.front, folder / name, [url, engine.url], model, **more)))
            for name, engine in standbys.items()
        ]  # fmt: skip
        looks = []
        for tokens in TOKENS:
            body = conversation(KINDS[0], tokenizer, SEED, tokens, ANSWER_TOKENS)
            async with aiohttp.ClientSession() as session:
                want = await ask(session, serving.url, body, limit=ANSWER_LIMIT)
            for _ in range(min(count, LOOKS[tokens])):
                looks.append({"tokens": tokens} | {one.name: await _look(one, body, want) for one in both})
                _tell(looks[-1])
        await proxy.stop()
    keep(NAME, {"on": provenance(), "cores": os.cpu_count(), "looks": looks})


@contextmanager
def _fleets(model: Path) -> Iterator[tuple[Engine, dict[str, Engine]]]:
    """Who serves, and the two that stand by: one shares its page store."""
    # Whoever computes anew has the whole machine for it; threads that wait must not spin, as others want to run then.
    threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"}
    with ExitStack() as stack:
        folder = stack.enter_context(moves.folder_of(NAME))
        options: dict[str, Any] = {"arguments": ARGUMENTS, "environment": threads, "blocks": BLOCKS}
        shared = paged_fleet(2, model, folder / PAGES, store_bytes=STORE_BYTES, **options)
        serving, standby = stack.enter_context(shared)
        (alone,) = stack.enter_context(paged_fleet(1, model, folder / WITHOUT, store_bytes=None, **options))
        say(f"{NAME}: three servers are ready")
        yield serving, {PAGES: standby, WITHOUT: alone}


def _made() -> Path:
    """The model's folder; it is made at first use."""
    code = f"from tests.vllm_plugin.real.costs import made; print(made({SIZE!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(vllm_python()), "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=MADE_S_MAX,
        check=True,
    )
    return Path(done.stdout.strip().splitlines()[-1])


async def _look(one: Standby, body: dict[str, Any], want: Answer) -> dict[str, Any]:
    """One stream that is cut. The server that answers has all pages; the standby has none of its own."""
    await asyncio.to_thread(forget_pages, one.engine)
    before = await asyncio.to_thread(metrics, one.engine)
    async with aiohttp.ClientSession() as session:
        got = await ask(session, one.gateway.url, body, limit=ANSWER_LIMIT)
    after = await asyncio.to_thread(metrics, one.engine)
    seen = await asyncio.to_thread(moves.facts, one.gateway, [got])
    return moves.move(KINDS[0], want, got, seen[got.request_id], 0.0) | {
        "brought_tokens": brought(before, after),
        "loaded_s": after[QUEUED] - before[QUEUED],
        "computed_s": after[PREFILLED] - before[PREFILLED],
    }


def _tell(look: dict[str, Any]) -> None:
    took = ", ".join(f"{look[name].get('engine_s', -1):.3f} s {name}" for name in (PAGES, WITHOUT))
    say(f"{NAME}: {look['tokens']} tokens: {took}")


# ---------------------------------------------------------------- what is told


def median(done: dict[str, Any], tokens: int, name: str, figure: str = "engine_s") -> float:
    """Of the looks at that length, in seconds."""
    looks = [look[name] for look in done[NAME]["looks"] if look["tokens"] == tokens and look[name]["moved"]]
    return statistics.median(look[figure] for look in looks) if looks else 0.0


def ratio(done: dict[str, Any], tokens: int) -> float:
    """How many times longer it takes to compute them."""
    with_pages = median(done, tokens, PAGES)
    return median(done, tokens, WITHOUT) / with_pages if with_pages else 0.0


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    looks = [look[name] for look in done[NAME]["looks"] for name in (PAGES, WITHOUT)]
    times = ratio(done, TOKENS[-1])
    return {
        f"a model of {WEIGHTS} weights: every cut stream equals its uninterrupted run": all(
            look["equal"] and look["moved"] for look in looks
        ),
        f"at {TOKENS[-1]:,} tokens the standby's first token comes {times:.0f} times sooner with pages than by "
        f"computing them anew; goal: {RATIO:.0f} times": times >= RATIO,
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words and as a plot."""
    if NAME not in done:
        return []
    told = done[NAME]
    plotted = {
        f"{said} the pages": [(float(tokens), round(median(done, tokens, name), 3)) for tokens in TOKENS]
        for name, said in ((WITHOUT, "computing"), (PAGES, "loading"))
    }
    drawn = svg("From the standby's being asked to its first token, s", "tokens of the prompt", plotted)
    (EVIDENCE / "sessions-recovery.svg").write_text(drawn)
    return [
        f"## Loading or computing, a model of {WEIGHTS} weights in float32",
        "",
        f"{told['on']}. One stream at a time, cut after {CUT_AFTER} tokens; the standby's prefix cache is emptied "
        f"first. Each engine may use all {told['cores']} cores. Medians, from when the gateway asks the standby until "
        "the client has the next token; admitted, computed: by vLLM's own clock, with pages.",
        "",
        "| tokens of the prompt | with pages | admitted, loaded | computed | without | ratio | looks |",
        "|---|---|---|---|---|---|---|",
        *(_line(done, tokens) for tokens in TOKENS),
        "",
        "![seconds by tokens](sessions-recovery.svg)",
        "",
    ]


def _line(done: dict[str, Any], tokens: int) -> str:
    looks = sum(look["tokens"] == tokens for look in done[NAME]["looks"])
    times = [median(done, tokens, PAGES, figure) for figure in ("engine_s", "loaded_s", "computed_s")]
    shown = " | ".join(f"{took * 1e3:.0f} ms" for took in times)
    return f"| {tokens:,} | {shown} | {median(done, tokens, WITHOUT):.2f} s | {ratio(done, tokens):.0f} | {looks} |"
