"""Real vLLM servers on the CPU under a trace that is too much for them: whose promises are kept, and who is served.

    python -m tests.prove promises                       a trace of our own: bursts and heavy tails, seeded
    python -m tests.prove promises --trace FILE          Azure's (*.csv) or Mooncake's (*.jsonl), scaled to the machine

Three tenants: an interactive one of priority 0; and below it a modest one and one that floods, who are to be served
the same. The same requests come with admission and without, in turn.
"""

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model
from guards.attainment import Kept, Verdict, wilson
from guards.conformal import MISSES
from guards.sla import Objective, ServiceClass, Slope, Tier
from tests.open_loop import Wish, offer
from tests.processes import Gateway
from tests.prove.fairness import gap
from tests.prove.plots import svg
from tests.prove.report import EVIDENCE
from tests.prove.state import SEED, STATE, keep, provenance, quantile, results, say
from tests.sim.traces import Arrival, drawn, read, scaled
from tests.two_tenants import in_configuration, key

NAME = "promises"
ON, OFF = "admission on", "admission off"
ROUNDS = 3  # of each
SECONDS, PATIENCE_S, IDLE_S_MAX = 45.0, 30.0, 60.0
DRAWN = 4_000  # requests of our own trace
LOAD = 2.0  # times what the servers can do
SERVERS, SEATS = 2, 8  # vLLM's max_num_seqs: as many as a core of this machine computes at once without being slower
INPUT_MEAN, OUTPUT_MEAN, TOKENS_MAX = 120, 40, 800
CLOSED, CLOSED_S = 32, 20.0  # clients that never rest, to see what the servers can do
IDS = (300, 8_000)  # of the tiny model's vocabulary, nothing special among them

INTERACTIVE, MODEST, FLOOD = "interactive", "modest", "flood"
SHARES = {INTERACTIVE: 0.2, MODEST: 0.3, FLOOD: 0.5}  # of the requests
TIERS = {
    "first": (0, Tier("first", (ServiceClass("chat", Objective(Slope(3.0, 2e-3), 0.5)),))),
    "second": (2, Tier("second", (ServiceClass("bulk", Objective(Slope(20.0, 2e-3), 0.5)),))),
}
TIER_OF = {INTERACTIVE: "first", MODEST: "second", FLOOD: "second"}
SECRETS = {who: f"sk-{who}-of-the-promises" for who in SHARES}


def run(file: Path | None = None) -> None:
    """Start servers and both gateways; see what the servers can do; then replay. file: a public trace."""
    if NAME in results():
        return
    folder = STATE / f"promises-{os.getpid()}"
    folder.mkdir(parents=True)
    model = tiny_model()
    arguments = ["--max-num-seqs", str(SEATS), "--max-num-batched-tokens", "512", "--no-enable-prefix-caching"]
    fleet = start_fleet(SERVERS, model, logs=STATE / "logs", on_progress=say, arguments=arguments)
    try:
        with ExitStack() as stack:
            gateways = {name: stack.enter_context(_gateway(folder, fleet, model, name)) for name in (ON, OFF)}
            trace = drawn(SEED, DRAWN) if file is None else read(file)
            name = f"drawn, seed {SEED}" if file is None else file.stem
            keep(NAME, {"on": provenance(), "trace": name, **replayed(trace, gateways, fleet)})
            for gateway in gateways.values():
                gateway.stop()
    finally:
        stop_fleet(fleet)
    shutil.rmtree(folder)


def replayed(trace: Sequence[Arrival], gateways: dict[str, Gateway], fleet: list[Engine]) -> dict[str, Any]:
    """All rounds, each of another part of the trace."""
    per_s = uvloop.run(capacity(trace, gateways[OFF], fleet))
    say(f"the servers can answer {per_s:.1f} requests a second")
    found: dict[str, Any] = {"capacity_per_s": per_s, "rounds": []}
    for number in range(ROUNDS):
        asked = wishes(trace, number, LOAD * per_s)
        for name in (ON, OFF) if number % 2 == 0 else (OFF, ON):
            one = uvloop.run(once(gateways[name], fleet, asked))
            found["rounds"].append({"policy": name, **one})
            say(f"{name}: {one['kept']}")
    found["faults"] = [fault for gateway in gateways.values() for fault in gateway.faults()]
    return found


def _gateway(folder: Path, fleet: list[Engine], model: Path, name: str) -> Gateway:
    folder /= name.replace(" ", "-")
    folder.mkdir()
    tiers = [in_configuration(tier, band) for band, tier in TIERS.values()]
    keys = [key(who, secret, TIER_OF[who]) for who, secret in SECRETS.items()]
    return Gateway(
        folder, [one.url for one in fleet], model="tiny", tokenizer=model / "tokenizer.json", standby=False,
        admission={"on": name == ON, "per_replica": SEATS}, tiers=tiers, keys=keys, routing={"prefixes": False},
    )  # fmt: skip


# ---------------------------------------------------------------- requests


def part(trace: Sequence[Arrival], number: int, per_s: float, seconds: float) -> list[Arrival]:
    """So many seconds of it, another part for each number, as fast and as large as the machine can bear."""
    count = min(len(trace), round(per_s * seconds))
    start = number * count % max(1, len(trace) - count)
    found = trace[start : start + count]
    begun_s = found[0].at_s
    return scaled([one._replace(at_s=one.at_s - begun_s) for one in found], per_s, INPUT_MEAN, OUTPUT_MEAN, TOKENS_MAX)


def wish(arrival: Arrival, who: str, rng: Random) -> Wish:
    """One request of a tenant. Its answer is as long as it allows: no other way makes a real model say so much."""
    promise = TIERS[TIER_OF[who]][1].promise(arrival.input_tokens, arrival.input_tokens, arrival.output_tokens)
    assert promise is not None
    body = {
        "model": "tiny", "prompt": [rng.randrange(*IDS) for _ in range(arrival.input_tokens)], "temperature": 0,
        "max_tokens": arrival.output_tokens, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return Wish(arrival.at_s, who, SECRETS[who], body, promise)


def wishes(trace: Sequence[Arrival], number: int, per_s: float) -> list[Wish]:
    """What comes in one round; the same with admission and without."""
    rng = Random(f"{SEED} {number}")
    names, shares = list(SHARES), list(SHARES.values())
    return [wish(one, rng.choices(names, shares)[0], rng) for one in part(trace, number, per_s, SECONDS)]


async def capacity(trace: Sequence[Arrival], gateway: Gateway, fleet: list[Engine]) -> float:
    """Requests a second that the servers can answer: never fewer than so many are there."""
    rng = Random(SEED)
    sizes = part(trace, 0, 1.0, 1_000.0)
    done = 0
    over_s = asyncio.get_running_loop().time() + CLOSED_S

    async def client() -> None:
        nonlocal done
        while asyncio.get_running_loop().time() < over_s:
            await offer(gateway.port, [wish(rng.choice(sizes)._replace(at_s=0.0), FLOOD, rng)], PATIENCE_S)
            done += asyncio.get_running_loop().time() < over_s

    await asyncio.gather(*(client() for _ in range(CLOSED)))
    await _idle(fleet)
    return done / CLOSED_S


async def once(gateway: Gateway, fleet: list[Engine], asked: list[Wish]) -> dict[str, Any]:
    """One round: what clients got, and what the journal says of it."""
    before = len(gateway.journal())
    sent = await offer(gateway.port, asked, PATIENCE_S)
    await _idle(fleet)
    await asyncio.sleep(1.0)  # for the journal's last lines
    facts = gateway.journal()[before:]
    good = [one for one in sent if one.verdict is Verdict.KEPT]
    waits = {fact["request_id"]: fact for fact in facts if fact["kind"] == "request.settled"}
    told = [(one, waits[one.request_id]) for one in sent if one.request_id in waits and one.first_s is not None]
    predicted = [(one.first_s - fact.get("waited_s", 0.0), fact["predicted_first_s"])
                 for one, fact in told if "predicted_first_s" in fact]  # fmt: skip
    return {
        "asked_per_s": len(sent) / SECONDS,
        "good_per_s": len(good) / SECONDS,
        "kept": {who: [sum(one.wish.who == who for one in many) for many in (good, sent)] for who in SHARES},
        "gateway_kept": sum(fact.get("promise") == Verdict.KEPT for fact in waits.values()),
        "first_p90_s": {who: _p90([one.first_s for one in sent if one.wish.who == who]) for who in SHARES},
        "refused": sum(one.refused for one in sent),
        "lost": sum(one.verdict is Verdict.LOST for one in sent),
        "covered": [sum(actual_s <= said_s for actual_s, said_s in predicted), len(predicted)],
        "gap": gap(facts, FLOOD, MODEST)._asdict(),
    }


def _p90(seconds: list[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return quantile(known, 1 - MISSES) if known else None


async def _idle(fleet: list[Engine]) -> None:
    """Wait until the servers have let go of everything."""
    async with asyncio.timeout(IDLE_S_MAX):
        while any([await asyncio.to_thread(one.running) for one in fleet]):  # noqa: ASYNC110 - it is another process's
            await asyncio.sleep(0.2)


# ---------------------------------------------------------------- what it came to


def _sum(rounds: list[dict[str, Any]], policy: str, who: str) -> Kept:
    kept = [one["kept"][who] for one in rounds if one["policy"] == policy]
    return Kept(sum(one[0] for one in kept), sum(one[1] for one in kept))


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured. Coverage is a goal: it is reported."""
    if NAME not in done:
        return {}
    rounds = done[NAME]["rounds"]
    on, off = (_sum(rounds, policy, INTERACTIVE) for policy in (ON, OFF))
    gaps = [one["gap"] for one in rounds if one["policy"] == ON]
    share = max(one["widest"] / one["bound"] for one in gaps)
    good = {policy: sum(one["good_per_s"] for one in rounds if one["policy"] == policy) for policy in (ON, OFF)}
    in_time = f"{good[ON] / ROUNDS:.1f} answers a second are in time, without it {good[OFF] / ROUNDS:.1f}"
    kept = f"{_share(on)} of the interactive tenant's promises are kept, without it {_share(off)}"
    return {
        f"with admission {kept}": on.interval[0] > off.interval[1],
        f"with admission {in_time}": good[ON] > good[OFF],
        f"while both wait, the flood is served more than the modest tenant by {share:.0%} of the bound, at most; they "
        f"both waited in every round": share <= 1 and all(one["seconds"] > 0 for one in gaps),
        "nothing in the gateways' logs that should not be there": not done[NAME]["faults"],
    }  # fmt: skip


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words; draws it as well."""
    if NAME not in done:
        return []
    found, rounds = done[NAME], done[NAME]["rounds"]
    covered = [sum(one["covered"][at] for one in rounds if one["policy"] == ON) for at in (0, 1)]
    low, high = wilson(*covered)
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    (EVIDENCE / "promises.svg").write_text(_drawn(rounds))
    return [
        f"{found['on']}. {SERVERS} servers of {SEATS} seats, that answer {found['capacity_per_s']:.1f} requests a "
        f"second when they never lack any. Trace: {found['trace']}; scaled to {LOAD:g} times that, {INPUT_MEAN} and "
        f"{OUTPUT_MEAN} tokens in the mean. Each round has {SECONDS:g} s of it, once with admission and once without. "
        "Kept: by the client's clock; refusals are among the broken ones.",
        "",
        "![promises kept](promises.svg)",
        "",
        "| | round | asked /s | in time /s | " + " | ".join(f"{who}, kept" for who in SHARES) + " | refused | lost |",
        "|" + " --- |" * (6 + len(SHARES)),
        *(_row(one, number // 2 + 1) for number, one in enumerate(rounds)),
        "",
        f"Predictions of the first token: {covered[0]} of {covered[1]} were within their p90, "
        f"{_of(Kept(*covered)):.1%} ({low:.1%} to {high:.1%}); the goal is {1 - MISSES:.0%} ± 2 %.",
        "",
        "| round | both waited, s | widest gap, weighted tokens | bound | flood was served | modest |",
        "|" + " --- |" * 6,
        *(_gap(one["gap"], number + 1) for number, one in enumerate(one for one in rounds if one["policy"] == ON)),
        "",
    ]  # fmt: skip


def _row(one: dict[str, Any], number: int) -> str:
    kept = " | ".join(_share(Kept(*one["kept"][who])) for who in SHARES)
    speed = f"{one['asked_per_s']:.1f} | {one['good_per_s']:.1f}"
    return f"| {one['policy']} | {number} | {speed} | {kept} | {one['refused']} | {one['lost']} |"


def _gap(one: dict[str, Any], number: int) -> str:
    cells = one["widest"], one["bound"], *one["served"]
    return f"| {number} | {one['seconds']:.1f} | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |"


def _drawn(rounds: list[dict[str, Any]]) -> str:
    found = {}
    for policy in (ON, OFF):
        mine = [one for one in rounds if one["policy"] == policy]
        for who in (INTERACTIVE, MODEST):
            points = [(float(at + 1), 100 * _of(Kept(*one["kept"][who]))) for at, one in enumerate(mine)]
            found[f"{who}, {policy}"] = points
    return svg("Promises kept, percent", "round", found)


def _of(kept: Kept) -> float:
    return kept.kept / kept.made if kept.made else 1.0


def _share(kept: Kept) -> str:
    low, high = kept.interval
    return f"{_of(kept):.1%} ({low:.1%} to {high:.1%})"
