"""Real vLLM servers that hang: SIGSTOP, connections that fall silent; and healthy ones under full load."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model
from loadtests.cutting_proxy import CuttingProxy
from tests.e2e.cuts import run_cuts
from tests.e2e.hangs import STREAMS, full_load, one_stop, seeded_stalls
from tests.e2e.requests import chat
from tests.processes import Gateway
from tests.prove.cuts import told
from tests.prove.state import SEED, STATE, keep, provenance, quantile, results, say

STOPS = 20
STALLED_STREAMS = 248  # some begin at the other server, which is not cut
STALL_TOKENS = 60
LOAD_S = 600.0
PAUSE_S_MAX = 2.0
# As for kills: slower than the path its tokens take, so that a pause is a pause. Under full load the other one, which
# starves two cores all the more.
MODEL = "small"
LOAD_MODEL = "tiny"


def stops() -> None:
    """Stop the serving vLLM 20 times under 8 streams, all of it and its EngineCore alone by turns."""
    done = results().get("stops", [])

    def work(fleet: list[Engine], gateway: Gateway, key: str) -> None:
        while len(done) < STOPS:
            number = len(done)
            one = asyncio.run(one_stop(number, fleet, gateway, key, alone=number % 2 > 0, seed=SEED))
            done.append(one | {"on": provenance()})
            keep("stops", done)
            say(f"stop {number + 1} of {STOPS} ({one['stopped']}): {one['equal']} of {STREAMS} streams equal, "
                f"largest pause {max(one['gaps_s'], default=0.0) * 1e3:.0f} ms")  # fmt: skip

    if len(done) < STOPS:
        with_fleet(MODEL, work)


def stalls() -> None:
    """Let 200 connections of a healthy server fall silent at seeded tokens, 8 streams at once."""
    if "stalls" not in results():
        fleet = start_fleet(2, tiny_model("float32", MODEL), logs=STATE / "logs", on_progress=say)
        try:
            keep("stalls", asyncio.run(stall(fleet)))
        finally:
            stop_fleet(fleet)


async def stall(fleet: list[Engine]) -> dict[str, Any]:
    """Through a proxy that goes silent in mid-stream, and keeps the connection."""
    folder = fresh_folder("stalls")
    proxy = CuttingProxy()
    host, _, port = fleet[0].address.rpartition(":")
    url = f"http://127.0.0.1:{await proxy.start(host, int(port))}"
    tokenizer = tiny_model("float32", MODEL) / "tokenizer.json"
    bodies = [
        chat(f"Write {n} lines.", max_tokens=STALL_TOKENS, ignore_eos=True, repetition_penalty=1.1 + n / 20)
        for n in range(STREAMS)
    ]
    starting = asyncio.to_thread(Gateway, folder, [url, fleet[1].url], model="tiny", tokenizer=tokenizer)
    with await starting as gateway:
        mine = await asyncio.to_thread(gateway.keys_create, "prove", "100M")
        proxy.plan = seeded_stalls(SEED, STALL_TOKENS)
        tally = await run_cuts(fleet[1].url, gateway.url, bodies, STALLED_STREAMS // STREAMS, key=mine)
        ejected = await asyncio.to_thread(gateway.metric, "holdfast_ejections_total")
        await proxy.stop()
    return {"on": provenance(), "stalls": len(proxy.cuts), "ejected": ejected, **told(tally)}


def load() -> None:
    """Keep two healthy servers and the gateway starving each other on the same cores for ten minutes."""

    def work(fleet: list[Engine], gateway: Gateway, key: str) -> None:
        keep("load", asyncio.run(full_load(LOAD_S, fleet, gateway, key)) | {"on": provenance()})

    if "load" not in results():
        with_fleet(LOAD_MODEL, work, standby=False)


def with_fleet(size: str, work: Callable[[list[Engine], Gateway, str], None], **said: Any) -> None:
    """Do something with two servers and a gateway in front of them."""
    model = tiny_model("float32", size)
    fleet = start_fleet(2, model, logs=STATE / "logs", on_progress=say)
    try:
        upstreams = [engine.url for engine in fleet]
        tokenizer = model / "tokenizer.json"
        with Gateway(fresh_folder("hangs"), upstreams, model="tiny", tokenizer=tokenizer, **said) as gateway:
            work(fleet, gateway, gateway.keys_create("prove", "100M"))
    finally:
        stop_fleet(fleet)


def fresh_folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"gateway-{name}-", dir=STATE))


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    found = {}
    if rounds := done.get("stops"):
        gaps = [gap for one in rounds for gap in one["gaps_s"]]
        found[f"{STOPS} times SIGSTOP: every stream equals its uninterrupted run, and is charged exactly once"] = len(
            rounds
        ) >= STOPS and all(one["equal"] == STREAMS and one["charged_exactly"] for one in rounds)
        found[f"{STOPS} times SIGSTOP: the next token came within {PAUSE_S_MAX:g} s"] = max(gaps) <= PAUSE_S_MAX
    if one := done.get("stalls"):
        found["200 stalled connections: every stream equals its uninterrupted run"] = (
            one["stalls"] >= 200 and one["equal"] == one["streams"]
        )
        found[f"200 stalled connections: the next token came within {PAUSE_S_MAX:g} s"] = (
            max(one["gaps_s"]) <= PAUSE_S_MAX
        )
        found["200 stalled connections: their server, which is well, was not ejected"] = not one["ejected"]
    if one := done.get("load"):
        found["ten minutes of full load on starved servers: nobody was ejected or held for down, all streams equal"] = (
            one["seconds"] >= LOAD_S
            and not one["ejections_total"]
            and not one["downs"]
            and one["equal"] == one["streams"]
        )
    return found


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    told_rows = []
    if rounds := done.get("stops"):
        for what in dict.fromkeys(one["stopped"] for one in rounds):
            mine = [one for one in rounds if one["stopped"] == what]
            gaps = [gap for one in mine for gap in one["gaps_s"]]
            told_rows.append((f"SIGSTOP of {what}, {len(mine)} times", gaps))
    if one := done.get("stalls"):
        told_rows.append((f"a connection falls silent, {one['stalls']} times", one["gaps_s"]))
    found = []
    if told_rows:
        found += [
            f"## Hangs under {STREAMS} streams",
            "",
            "Largest pause of each stream that went on elsewhere:",
            "",
            "| | streams | p50 | p90 | p99 | largest |",
            "|---|---|---|---|---|---|",
            *(
                f"| {what} | {len(gaps)} | "
                + " | ".join(f"{quantile(gaps, q) * 1e3:.0f} ms" for q in (0.5, 0.9, 0.99, 1.0))
                + " |"
                for what, gaps in told_rows
            ),
            "",
        ]
    if one := done.get("load"):
        gaps = ", ".join(f"p{float(share) * 100:g} {gap * 1e3:.0f} ms" for share, gap in one["gap_s"].items())
        found += [
            f"## {one['seconds'] / 60:g} minutes of full load, {one['at_once']} streams at once, nothing wrong",
            "",
            f"{one['on']}. {one['streams']} streams, {one['equal']} equal to their uninterrupted run. "
            f"Gaps between tokens as clients saw them: {gaps}. "
            f"Races run: {one['hedges_total']:.0f}, of which the second server won {one['hedges_won_total']:.0f}. "
            f"Ejections: {one['ejections_total']:.0f}; replicas held for down: {one['downs']}.",
            "",
        ]
    return found
