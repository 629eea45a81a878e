"""Real vLLM servers, killed in mid-stream: every stream goes on, equal to its uninterrupted run."""

import asyncio
import os
import random
import signal
import statistics
import sys
import time
from typing import Any

import aiohttp

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model
from tests.answers import Answer, ask
from tests.e2e.cuts import AT_ONCE
from tests.e2e.requests import chat
from tests.processes import Gateway, until
from tests.prove.state import SEED, STATE, keep, provenance, quantile, results, say

KILLS = 20
# The tiny model outruns vLLM's own API process on two cores: what it said then comes in lumps, seconds apart, kill or
# no kill. The small one is slower than the path its tokens take, as models on GPUs are, so that a pause is a pause.
KILL_MODEL = "small"
KILL_TOKENS = 300


def run() -> None:
    """Kill a serving vLLM 20 times, by SIGKILL to its process group, at seeded moments, under 8 streams."""
    done = results().get("kills", [])
    if len(done) >= KILLS:
        return
    model = tiny_model("float32", KILL_MODEL)
    fleet = start_fleet(2, model, logs=STATE / "logs", on_progress=say)
    folder = STATE / f"gateway-{os.getpid()}"
    folder.mkdir()
    tries = KILLS  # rounds that may be done again
    try:
        tokenizer = model / "tokenizer.json"
        with Gateway(folder, [engine.url for engine in fleet], model="tiny", tokenizer=tokenizer) as gateway:
            key = gateway.keys_create("prove", "100M")
            while len(done) < KILLS:
                number = len(done)
                one = asyncio.run(one_kill(number, fleet, gateway, key))
                faultless = one["equal"] == AT_ONCE and one["charged_exactly"]
                if one["failed_over"] < AT_ONCE and faultless:  # a fault is never done again, it is kept
                    say(f"only {one['failed_over']} streams were cut: the others had ended; this round is done again")
                    tries -= 1
                    if not tries:
                        sys.exit("the servers are too fast, or too slow, for kills in mid-stream")
                    continue
                done.append(one)
                keep("kills", done)
                say(f"kill {number + 1} of {KILLS}: {done[-1]['equal']} of {AT_ONCE} streams equal, "
                    f"largest pause {max(done[-1]['gaps_s']) * 1e3:.0f} ms")  # fmt: skip
    finally:
        stop_fleet(fleet)


async def one_kill(number: int, fleet: list[Engine], gateway: Gateway, key: str) -> dict[str, Any]:
    """Stream, kill the server that answers, compare, and start it again on its port."""
    rng = random.Random(SEED + number)
    bodies = [
        chat(f"Round {number}: tell me {n} things.", max_tokens=KILL_TOKENS, repetition_penalty=1.1 + n / 20)
        for n in range(AT_ONCE)
    ]
    async with aiohttp.ClientSession() as session:
        wanted = await asyncio.gather(*(ask(session, fleet[1].url, body) for body in bodies))
        spent = sum(one.spent for one in gateway.balances())
        asked = [asyncio.create_task(ask(session, gateway.url, body, key=key)) for body in bodies]
        await asyncio.to_thread(until, lambda: sum(engine.running() for engine in fleet) == AT_ONCE)
        await asyncio.sleep(rng.uniform(0.2, 1.2))
        serving = max(fleet, key=Engine.running)
        killed_at = time.time()
        serving.kill(signal.SIGKILL)
        got = await asyncio.gather(*asked)
    lost = [f["at"] for f in gateway.journal() if f["kind"] == "leg.ended" and f["lost"] and f["at"] >= killed_at]
    ups = gateway.log().count('"replica.up"')
    restart(serving)
    until(lambda: gateway.log().count('"replica.up"') > ups)  # readmitted
    charged = sum(one.spent for one in gateway.balances()) - spent
    return {
        "on": provenance(),
        "equal": sum(want.content == have.content for want, have in zip(wanted, got, strict=True)),
        "failed_over": sum(have.said is not None for have in got),
        "gaps_s": [max(have.gaps_s) for have in got if have.said is not None],
        "usual_gap_s": statistics.median(gap for want in wanted for gap in want.gaps_s),
        "detected_s": [at - killed_at for at in lost],
        "charged_exactly": charged == sum(cost(have) for have in got) and gateway.balance(key).held == 0,
    }


def restart(engine: Engine) -> None:
    """Start a killed server again on its port; the gateway readmits it when it answers."""
    engine.stop()
    engine.start()
    engine.wait_ready(on_progress=say)


def cost(answer: Answer) -> int:
    """What an answer must have been charged, in tokens."""
    assert answer.usage is not None
    total: int = answer.usage["prompt_tokens"] + answer.tokens
    return total


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured. The goals for the pause are reported, not judged."""
    rounds = done.get("kills")
    if not rounds:
        return {}
    all_cut = len(rounds) >= KILLS and all(r["failed_over"] == AT_ONCE for r in rounds)
    return {
        f"{KILLS} kills in mid-stream, every one under {AT_ONCE} streams that were cut by it": all_cut,
        "every stream over every kill equals its uninterrupted run": all(r["equal"] == AT_ONCE for r in rounds),
        "every stream over every kill is charged exactly once": all(r["charged_exactly"] for r in rounds),
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    rounds = done.get("kills")
    if not rounds:
        return []
    gaps = [gap for one in rounds for gap in one["gaps_s"]]
    found = [gap for one in rounds for gap in one["detected_s"]]
    usual = statistics.median(one["usual_gap_s"] for one in rounds)
    rows = [("largest pause of a stream that was cut", gaps), ("of that, from the kill to the loss being known", found)]
    return [
        f"## {len(rounds)} times kill -9 of the serving vLLM's process group, under {AT_ONCE} streams",
        "",
        f"{rounds[0]['on']} to {rounds[-1]['on']}. "
        f"{sum(one['equal'] for one in rounds)} of {len(rounds) * AT_ONCE} streams equal to their uninterrupted run in "
        f"ids, text, ends and usage; {len(gaps)} of them were cut in mid-answer. "
        f"Between tokens, undisturbed: {usual * 1e3:.0f} ms (median).",
        "",
        "| | p50 | p90 | p99 | largest |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | " + " | ".join(f"{quantile(v, q) * 1e3:.0f} ms" for q in (0.5, 0.9, 0.99, 1.0)) + " |"
            for name, v in rows
        ),
        "",
    ]
