"""More requests than two servers can answer: what comes in time, with admission and without, and what refusals cost.

Servers are stubs with the engine of a small vLLM (loadtests/stub_computer.py), so that what they can do is known; the
gateway, its configuration, the sockets and the clients are real.
"""

import asyncio
import os
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from guards.attainment import Kept, Verdict
from loadtests.processes import StubProcess, start_stub
from loadtests.stub_computer import SHAPE
from loadtests.stub_tokenizer import write_tokenizer
from tests.open_loop import Sent, offer
from tests.processes import Gateway
from tests.prove.plots import svg
from tests.prove.report import EVIDENCE
from tests.prove.state import SEED, STATE, keep, provenance, quantile, results, say
from tests.two_tenants import BATCH, ENGINE, INTERACTIVE, MODEST, SERVERS, capacity_per_s, parts, wishes

NAME = "overload"
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # times what the servers can do
WARM_S, COUNTED_S, TAIL_S = 10.0, 25.0, 5.0  # of one load; who comes last is not counted, nobody comes after them
PATIENCE_S = 20.0  # of clients, after the last one came
IDLE_S_MAX = 30.0  # for servers to let go of clients that left
WITHIN = 0.05  # of the peak, at the highest load
REFUSED_P99_S_MAX = 0.010
GROWN_MAX = 0.05  # of the gateway's memory, by the highest load
STARVED_MAX, TRIES = 0.25, 3  # of the time, that its loop waited for its core: for its own threads, or for others
ON, OFF = "admission on", "admission off"
LEARNT = "on, seats not told"  # `per_replica` is left as it is: what servers have room for is found by trying
POLICIES = {LOADS[0]: (ON, OFF), 1.0: (ON, OFF, LEARNT), LOADS[-1]: (ON, OFF, LEARNT)}
GATEWAY_CORE, REST_CORE = 0, 1
IN_FLIGHT = 8_000  # requests: so that without admission nothing else refuses them


def run() -> None:
    """All loads, each with admission and without, in turn the one and the other first. The gateway has a core alone."""
    if NAME in results():
        return
    os.sched_setaffinity(0, {REST_CORE})
    try:
        _run()
    finally:
        os.sched_setaffinity(0, {GATEWAY_CORE, REST_CORE})


def _run() -> None:
    folder = STATE / f"overload-{os.getpid()}"
    folder.mkdir(parents=True)
    found: dict[str, Any] = {"on": provenance(), "capacity_per_s": capacity_per_s(), "rows": []}
    with ExitStack() as stack:
        stubs = [stack.enter_context(start_stub(engine=ENGINE, seed=7)) for _ in range(SERVERS)]
        gateways = {name: stack.enter_context(_gateway(folder, stubs, name)) for name in (ON, OFF, LEARNT)}
        for number, load in enumerate(LOADS):
            policies = POLICIES.get(load, (ON, OFF))
            for name in policies if number % 2 == 0 else policies[::-1]:
                row = undisturbed(gateways[name], stubs, load, SEED + number)
                found["rows"].append({"policy": name, "load": load, **row})
                say(f"{name}, {load:g} times: {row['good_per_s']:.1f} of {row['asked_per_s']:.1f} a second in time")
        for name, gateway in gateways.items():
            found.setdefault("faults", {})[name] = gateway.faults()
            gateway.stop()
    keep(NAME, found)
    shutil.rmtree(folder)


def _gateway(folder: Path, stubs: list[StubProcess], name: str) -> Gateway:
    folder /= name.replace(" ", "-")
    folder.mkdir()
    limits = {"requests_in_flight": IN_FLIGHT, "client_connections": 2 * IN_FLIGHT}
    tokenizer = write_tokenizer(folder)
    more = parts(on=name != OFF, **({"per_replica": SHAPE.seqs_max} if name == ON else {}))
    gateway = Gateway(folder, [stub.url for stub in stubs], tokenizer=tokenizer, standby=False, limits=limits, **more)
    for thread in os.listdir(f"/proc/{gateway.process.pid}/task"):
        os.sched_setaffinity(int(thread), {GATEWAY_CORE})
    return gateway


def undisturbed(gateway: Gateway, stubs: list[StubProcess], load: float, seed: int) -> dict[str, Any]:
    """One load, again where others on this machine were in the way; the one of these that was disturbed least."""
    tried = []
    for _ in range(TRIES):
        tried.append(uvloop.run(once(gateway, stubs, load, seed)))
        if tried[-1]["starved"] <= STARVED_MAX:
            break
        say(f"{load:g} times: the gateway waited for its core for {tried[-1]['starved']:.0%} of the time")
    return {"tries": len(tried), **min(tried, key=lambda one: float(one["starved"]))}


async def once(gateway: Gateway, stubs: list[StubProcess], load: float, seed: int) -> dict[str, Any]:
    """One load, and what came of it."""
    before, begun_s, starved_s = gateway.rss_bytes(), time.monotonic(), _starved_s(gateway)
    sent = await offer(gateway.port, wishes(load, WARM_S + COUNTED_S + TAIL_S, seed), PATIENCE_S)
    starved = (_starved_s(gateway) - starved_s) / (time.monotonic() - begun_s)
    await _idle(stubs)
    counted = [one for one in sent if WARM_S <= one.wish.at_s < WARM_S + COUNTED_S]
    memory = {"rss_before": before, "rss_after": gateway.rss_bytes()}
    return {**judged(counted, COUNTED_S), **memory, "starved": starved}


def _starved_s(gateway: Gateway) -> float:
    """How long its loop's thread was ready to run and did not, ever."""
    return int(Path(f"/proc/{gateway.process.pid}/schedstat").read_text().split()[1]) / 1e9


def judged(counted: list[Sent], span_s: float) -> dict[str, Any]:
    """What clients got. kept: of how many, by tenant."""
    good = [one for one in counted if one.verdict is Verdict.KEPT]
    at_once = [one.last_s for one in counted if one.refused_at_once and one.last_s is not None]
    waited = [one.last_s for one in counted if one.refused and not one.refused_at_once and one.last_s is not None]
    kept, broken = dict[str, list[int]](), dict[str, Counter[str]]()
    for who in (INTERACTIVE, BATCH):
        kept[who] = [sum(one.wish.who == who for one in many) for many in (good, counted)]
        broken[who] = Counter(one.verdict for one in counted if one.wish.who == who)
    firsts = [one.first_s for one in counted if one.wish.who == INTERACTIVE and one.first_s is not None]
    return {
        "asked_per_s": len(counted) / span_s,
        "good_per_s": len(good) / span_s,
        "tokens_per_s": sum(one.tokens for one in good) / span_s,
        "kept": kept,
        "broken": broken,
        "statuses": Counter(str(one.status) for one in counted),
        "refused": [len(at_once), len(waited)],
        "at_once_p50_s": quantile(at_once, 0.5) if at_once else None,
        "at_once_p99_s": quantile(at_once, 0.99) if at_once else None,
        "waited_p99_s": quantile(waited, 0.99) if waited else None,
        "first_p99_s": quantile(firsts, 0.99) if firsts else None,
        "lag_p99_s": quantile([one.lag_s for one in counted], 0.99),
    }  # fmt: skip


async def _idle(stubs: list[StubProcess]) -> None:
    """Wait until the servers have let go of everything."""
    async with asyncio.timeout(IDLE_S_MAX):
        while any([(await asyncio.to_thread(stub.stats))["open_streams"] for stub in stubs]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    rows = {one["load"]: one for one in done[NAME]["rows"] if one["policy"] == ON}
    peak, least, most = max(one["good_per_s"] for one in rows.values()), rows[1.0], rows[max(rows)]
    share = most["good_per_s"] / peak
    kept, floor = (Kept(*one["kept"][INTERACTIVE]) for one in (most, least))
    grown = most["rss_after"] / most["rss_before"] - 1
    p99_s, (at_once, waited) = most["at_once_p99_s"] or 0.0, most["refused"]
    at = f"at {max(rows):g} times what servers can do"
    found = {
        f"{share:.1%} of the best load's answers are in time, at least {1 - WITHIN:.0%}": share >= 1 - WITHIN,
        f"{_share(kept)} of the interactive tenant's promises are kept, not below the {floor.interval[0]:.1%} "
        "that its interval at 1 begins with": _of(kept) >= floor.interval[0],
        f"{at_once / (at_once + waited):.1%} of refusals are said at once, and take {_ms(p99_s)} ms (p99), less than "
        f"{_ms(REFUSED_P99_S_MAX)}": p99_s < REFUSED_P99_S_MAX,
        f"the gateway's memory grows by {grown:.1%}, at most {GROWN_MAX:.0%}": grown <= GROWN_MAX,
    }
    clean = {"nothing in the gateways' logs that should not be there": not any(done[NAME]["faults"].values())}
    return {f"{at}, {claim}": good for claim, good in found.items()} | clean


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words; draws it as well."""
    if NAME not in done:
        return []
    rows = done[NAME]["rows"]
    _draw(rows)
    return [
        f"{done[NAME]['on']}. {SERVERS} servers that can answer {done[NAME]['capacity_per_s']:.1f} requests a second, "
        "by the engine that they run. Clients come by chance (Poisson), whatever became of those before them. The "
        f"interactive tenant, of priority 0, always asks for {MODEST:g} of what servers can do, the batch tenant for "
        "the rest. «Seats not told»: `per_replica` is left as it is, so that admission has to find out what servers "
        "have room for. In time: the promise was kept by the client's clock. Refusals are among the broken ones. "
        "Starved: the share of the time in which the gateway's loop could have run, and something else had its core: "
        f"its own threads, or others on this machine. A load is offered anew, up to {TRIES} times, where that is above "
        f"{STARVED_MAX:.0%}.",
        "",
        "![answers in time, by load](overload.svg)",
        "",
        "| load | | asked /s | in time /s | their tokens /s | interactive, kept | its p99 to the first token, s "
        "| batch, kept | refused at once | p50, ms | p99 | refused after a wait | p99, ms | memory before, MB "
        "| after | starved |",
        "|" + " --- |" * 16,
        *(_line(one) for one in sorted(rows, key=lambda one: (one["load"], one["policy"]))),
        "",
    ]


def _line(one: dict[str, Any]) -> str:
    kept = [_share(Kept(*one["kept"][who])) for who in (INTERACTIVE, BATCH)]
    at_once, waited = map(str, one["refused"])
    refused = [at_once, _ms(one["at_once_p50_s"]), _ms(one["at_once_p99_s"]), waited, _ms(one["waited_p99_s"])]
    memory = [f"{one[name] / 1e6:.0f}" for name in ("rss_before", "rss_after")]
    first = "–" if one["first_p99_s"] is None else f"{one['first_p99_s']:.2f}"
    cells = [
        f"{one['load']:g}", one["policy"], f"{one['asked_per_s']:.1f}", f"{one['good_per_s']:.1f}",
        f"{one['tokens_per_s']:,.0f}", kept[0], first, kept[1], *refused, *memory,
        f"{one['starved']:.1%}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _draw(rows: list[dict[str, Any]]) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    rows = [one for one in rows if one["policy"] != LEARNT]
    for one in rows:
        found.setdefault(f"{one['policy']}: in time /s", []).append((one["load"], one["good_per_s"]))
    for one in rows:
        share = 10 * _of(Kept(*one["kept"][INTERACTIVE]))
        found.setdefault(f"{one['policy']}: interactive, kept of 10", []).append((one["load"], share))
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    (EVIDENCE / "overload.svg").write_text(svg("Answers in time, by load", "times what servers can do", found))


def _of(kept: Kept) -> float:
    return kept.kept / kept.made if kept.made else 1.0


def _share(kept: Kept) -> str:
    low, high = kept.interval
    return f"{_of(kept):.1%} ({low:.1%} to {high:.1%})"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f}"
