"""A runaway key and its neighbours: how soon its streams end, and what others feel of it."""

import asyncio
import json
import os
import shutil
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

from guards.budget import Limit, Unit, Window
from loadtests.processes import start_stub
from tests.processes import ROOT, Gateway
from tests.prove.state import STATE, keep, provenance, quantile, results, say
from tests.scenarios.asking import ask, chat, order
from tests.scenarios.test_breakers import Bystander, turns
from tests.scenarios.test_money import PRICE, make_key

NAME = "runaway"
TIMES = 10
STREAMS, BYSTANDERS = 100, 20
TOKENS_PER_S = 20
CALM_S, AFTER_S = 8.0, 2.0
END_S_MAX, MOVED_MAX = 1.0, 0.10
GATEWAY_CORE, REST_CORE = 0, 1
DAY = Limit(1_000_000, Window.DAY, Unit.MONEY)


def run() -> None:
    """Ten times over, each with a gateway of its own."""
    done = results().get(NAME, [])
    os.sched_setaffinity(0, {REST_CORE})  # servers and clients, too
    try:
        while len(done) < TIMES:
            folder = STATE / f"runaway-{time.time_ns()}"
            folder.mkdir(parents=True)
            done.append(asyncio.run(once(folder)))
            shutil.rmtree(folder)
            keep(NAME, done)
            one = done[-1]
            felt = f"p99 {one['before_ms']:.1f} ms, then {one['during_ms']:.1f}"
            say(f"{len(done)} of {TIMES}: {felt}; ended {one['ended_s']:.2f} s after the trip")
    finally:
        os.sched_setaffinity(0, {GATEWAY_CORE, REST_CORE})


async def once(folder: Path) -> dict[str, Any]:
    """Neighbours in calm, then beside a hundred endless streams until shortly after their end."""
    with start_stub() as stub:
        gateway = await asyncio.to_thread(Gateway, folder, [stub.url], prices=[PRICE], breaker="on")
        try:
            for thread in os.listdir(f"/proc/{gateway.process.pid}/task"):
                os.sched_setaffinity(int(thread), {GATEWAY_CORE})
            return {"on": provenance(), **await beside(gateway)}
        finally:
            gateway.stop()


async def beside(gateway: Gateway) -> dict[str, Any]:
    """The neighbours' gaps between tokens, and the runaway's end."""
    runaway, other = (make_key(gateway, user, user, "x", DAY) for user in ("mallory", "bob"))
    others = [Bystander() for _ in range(BYSTANDERS)]
    tokens = int((2 * CALM_S + 10) * TOKENS_PER_S)
    body = chat(order(tokens=tokens, tokens_per_s=TOKENS_PER_S))
    bystanding = [asyncio.create_task(ask(gateway, other, body, until=one.seen)) for one in others]
    await asyncio.sleep(CALM_S + 1)
    endless = json.dumps(chat(order(tokens=100_000, tokens_per_s=TOKENS_PER_S)))
    command = [
        "nice",
        sys.executable,
        "-m",
        "tests.scenarios.runaway",
        str(gateway.port),
        runaway,
        str(STREAMS),
        endless,
    ]
    began_s = time.monotonic()
    running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
    answers = json.loads((await running.communicate())[0])
    ended_s, ended_at = time.monotonic(), time.time()
    (turned,) = turns(gateway)
    await asyncio.sleep(AFTER_S)
    now_s = time.monotonic()
    for task in bystanding:
        task.cancel()
    before, during = (
        sorted(gap for one in others for gap in one.gaps(since_s, until_s))
        for since_s, until_s in ((began_s - CALM_S, began_s), (began_s, now_s))
    )
    clean = sum(one["status"] == 200 and one["done"] and one["stop"] == ["length", "breaker_open"] for one in answers)
    return {
        "ended_s": ended_at - turned["at"], "lasted_s": ended_s - began_s, "clean": clean, "gaps": len(during),
        "before_ms": quantile(before, 0.99) * 1e3, "during_ms": quantile(during, 0.99) * 1e3,
    }  # fmt: skip


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    runs = done.get(NAME)
    if not runs:
        return {}
    moved = statistics.median(one["during_ms"] / one["before_ms"] for one in runs) - 1
    return {
        f"{TIMES} runaways of {STREAMS} streams, each ended cleanly within {END_S_MAX:g} s of the trip": len(runs)
        >= TIMES
        and all(one["clean"] == STREAMS and one["ended_s"] < END_S_MAX for one in runs),
        f"others' p99 between tokens moves by {moved:.1%} (median), less than {MOVED_MAX:.0%}": moved < MOVED_MAX,
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    runs = done.get(NAME)
    if not runs:
        return []
    return [
        f"## {STREAMS} endless streams of a key, beside {BYSTANDERS} of another, all at {TOKENS_PER_S} tokens a second",
        "",
        "The gateway has a core alone, servers and clients share the other one. «Before» is eight calm seconds, "
        "«beside» from the first of the hundred to two seconds after the last has ended.",
        "",
        "| ended after the trip, s | lasted, s | p99 between others' tokens before, ms | beside, ms |",
        "| --- | --- | --- | --- |",
        *(
            f"| {one['ended_s']:.2f} | {one['lasted_s']:.1f} | {one['before_ms']:.1f} | {one['during_ms']:.1f} |"
            for one in runs
        ),
        "",
    ]
