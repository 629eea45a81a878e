"""Real vLLM servers whose streams are cut at seeded points, compared with uncut runs, in two number formats."""

import asyncio
import os
from typing import Any

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model
from loadtests.cutting_proxy import CuttingProxy
from tests.e2e.cuts import AT_ONCE, Tally, run_cuts, seeded_plan
from tests.e2e.requests import chat
from tests.processes import TRUSTING, Gateway
from tests.prove.state import SEED, STATE, keep, provenance, results, say

DTYPES = ("float32", "bfloat16")
CUT_TOKENS = 60
CUT_STREAMS = 330
TOPICS = ("sockets", "regular expressions", "the calendar", "decimal numbers", "mail")


def run(dtype: str) -> None:
    """Cut 300 greedy streams at seeded points, 8 at once, and compare them with uncut runs."""
    if f"cuts-{dtype}" in results():
        return
    fleet = start_fleet(2, tiny_model(dtype), logs=STATE / "logs", on_progress=say, dtype=dtype)
    try:
        keep(f"cuts-{dtype}", asyncio.run(run_one_dtype(fleet, dtype)))
    finally:
        stop_fleet(fleet)


async def run_one_dtype(fleet: list[Engine], dtype: str) -> dict[str, Any]:
    """The cuts for one number format; also, uncut streams compared with each other, as the control."""
    folder = STATE / f"gateway-{dtype}-{os.getpid()}"
    folder.mkdir()
    bodies = [
        chat(f"Write {count} lines about {topic}.", max_tokens=CUT_TOKENS, ignore_eos=True, repetition_penalty=penalty)
        for count, topic in enumerate(TOPICS)
        for penalty in (1.0, 1.1, 1.3)
    ]
    proxy = CuttingProxy()
    host, _, port = fleet[0].address.rpartition(":")
    url = f"http://127.0.0.1:{await proxy.start(host, int(port))}"
    tokenizer = tiny_model(dtype) / "tokenizer.json"
    said = {"model": "tiny", "tokenizer": tokenizer, "health": TRUSTING}
    starting = asyncio.to_thread(Gateway, folder, [url, fleet[1].url], **said)
    with await starting as gateway:
        key = await asyncio.to_thread(gateway.keys_create, "prove", "100M")
        say(f"{dtype}: {CUT_STREAMS} streams uncut, as the control")
        control = await run_cuts(fleet[1].url, gateway.url, bodies, CUT_STREAMS // len(bodies), key=key)
        proxy.plan = seeded_plan(SEED, CUT_TOKENS)
        say(f"{dtype}: {CUT_STREAMS} streams, cut")
        cut = await run_cuts(fleet[1].url, gateway.url, bodies, CUT_STREAMS // len(bodies), key=key)
        await proxy.stop()
    return {"on": provenance(), "cuts": len(proxy.cuts), "cut": told(cut), "control": told(control)}


def told(tally: Tally) -> dict[str, Any]:
    """A tally as JSON."""
    return {
        "streams": tally.streams,
        "equal": tally.equal,
        "failed_over": tally.cut,
        "differing": tally.differing[:20],
        "gaps_s": tally.gaps_s,
    }


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured; bfloat16 is reported, not judged."""
    exact = done.get("cuts-float32")
    if exact is None:
        return {}
    return {
        "at least 300 cuts were made in float32": exact["cuts"] >= 300,
        "every cut stream in float32 equals its uninterrupted run": not exact["cut"]["differing"],
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    return [line for dtype in DTYPES for line in _lines(dtype, done.get(f"cuts-{dtype}"))]


def _lines(dtype: str, done: dict[str, Any] | None) -> list[str]:
    if done is None:
        return []
    cut, control = done["cut"], done["control"]
    return [
        f"## {done['cuts']} cuts at seeded points in {dtype}, {AT_ONCE} streams at once",
        "",
        f"{done['on']}.",
        "",
        "| | streams | equal to the uninterrupted run |",
        "|---|---|---|",
        f"| cut | {cut['streams']} | {cut['equal']} |",
        f"| not cut (control) | {control['streams']} | {control['equal']} |",
        "",
        *(f"- {one}" for one in cut["differing"][:5]),
        *([""] if cut["differing"] else []),
    ]
