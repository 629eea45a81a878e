"""Streams of every kind on two real vLLM servers with the plugin, cut at seeded points, that go on by replay."""

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.local.engine import Engine, stop_fleet, tiny_model
from loadtests.cutting_proxy import CuttingProxy
from tests import shared_pages
from tests.e2e.continuations import AT_ONCE, Requests, known, run
from tests.e2e.kinds import KINDS
from tests.e2e.test_continuations import PATIENT
from tests.processes import TRUSTING, Gateway
from tests.prove.state import SEED, STATE, keep, provenance, results, say
from tests.vllm_plugin.real.restored import server, thinking_model

STEPS = ("continuations", "continuations-reasoning")
CUTS = 50
PARSERS = (*shared_pages.PARSERS, "--reasoning-parser", "qwen3")
NOTHING: dict[str, Any] = {"kinds": {}}


def go(cuts: int = CUTS, *, reasoning: bool = False) -> None:
    """Cut so many streams of each kind, and compare each with its uninterrupted run.

    reasoning: of those kinds that need a server with a parser of thoughts, else of the others, without one.
    """
    step = STEPS[reasoning]
    kinds = {kind: bodies for kind, bodies in KINDS.items() if kind.startswith("reasoning") == reasoning}
    if kinds.keys() <= results().get(step, NOTHING)["kinds"].keys():
        return
    folder = STATE / f"{step}-{os.getpid()}"
    folder.mkdir(parents=True)
    model = thinking_model(folder / "model") if reasoning else tiny_model()
    parsers = PARSERS if reasoning else shared_pages.PARSERS
    fleet = [server(folder / name, *parsers, model=model) for name in ("first", "second")]
    try:
        for engine in fleet:
            engine.start()
        with ThreadPoolExecutor() as waiting:
            try:
                list(waiting.map(lambda engine: engine.wait_ready(on_progress=say), fleet))
            except BaseException:
                stop_fleet(fleet)  # ends the waiting of the others, which this block would join
                raise
        asyncio.run(cut_all(step, fleet, folder, kinds, cuts))
    finally:
        stop_fleet(fleet)
        shutil.rmtree(folder / "model", ignore_errors=True)


async def cut_all(step: str, fleet: list[Engine], folder: Path, kinds: dict[str, Any], cuts: int) -> None:
    """One kind after the other, through a gateway without a tokenizer; those are kept that are done."""
    proxy = CuttingProxy()
    host, _, port = fleet[0].address.rpartition(":")
    url = f"http://127.0.0.1:{await proxy.start(host, int(port))}"
    requests, told = Requests(SEED), dict(results().get(step, NOTHING)["kinds"])
    proxy.plan = requests.plan
    more: dict[str, Any] = {"model": "tiny", "integrity": {"ask_every_s": 1.0}, "health": TRUSTING, "timeouts": PATIENT}
    with await asyncio.to_thread(Gateway, folder, [url, fleet[1].url], **more) as gateway:
        await asyncio.to_thread(known, gateway)
        key = await asyncio.to_thread(gateway.keys_create, "prove", "100M")
        for kind, bodies in kinds.items():
            if kind in told:
                continue
            tally = await run(fleet[1].url, gateway.url, requests, bodies, cuts, key, kind)
            say(f"{kind}: {tally.cut} cut, {tally.equal} of {tally.streams} equal")
            told[kind] = asdict(tally) | {"requests": len(bodies)}
            keep(step, {"on": provenance(), "cuts": cuts, "kinds": told, "faults": gateway.faults()})
    await proxy.stop()


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    found = [done[step] for step in STEPS if step in done]
    if not found:
        return {}
    kinds = [tally for one in found for tally in one["kinds"].values()]
    return {
        f"at least {CUTS} streams of each kind were cut and went on by replay": all(k["cut"] >= CUTS for k in kinds),
        "every stream equals its uninterrupted run, as the official SDK has it": not any(k["differing"] for k in kinds),
        "nothing went wrong in the gateway": not any(one["faults"] for one in found),
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    found = [done[step] for step in STEPS if step in done]
    if not found:
        return []
    kinds = [(kind, tally) for one in found for kind, tally in one["kinds"].items()]
    on = ", ".join(dict.fromkeys(one["on"] for one in found))
    return [
        f"## Streams cut in front of one server, that went on by replay at another, {AT_ONCE} at once",
        "",
        f"{on}. Compared is what the official SDK makes of the events: texts, reasoning, calls of tools,",
        "logprobs, ends, and usage with all its details; and the token ids. Float32.",
        "",
        "| kind of request | requests | streams | cut | equal | pause, median ms | worst ms |",
        "|---|---|---|---|---|---|---|",
        *(_row(kind, tally) for kind, tally in kinds),
        "",
        *(f"- {kind}: {one}" for kind, tally in kinds for one in tally["differing"][:3]),
        *([""] if any(tally["differing"] for _, tally in kinds) else []),
        "The pause is between the last token before the cut and the first one after it, as the gateway sees it, with",
        "other streams running on both servers. Refused by name: `thinking_token_budget`, beam search, images, and",
        "what else the plugin's status lists in `continues.refused`.",
    ]


def _row(kind: str, tally: dict[str, Any]) -> str:
    gaps = sorted(tally["gaps_ms"]) or [0.0]
    told = f"{gaps[len(gaps) // 2]:.0f} | {gaps[-1]:.0f}"
    return f"| {kind} | {tally['requests']} | {tally['streams']} | {tally['cut']} | {tally['equal']} | {told} |"
