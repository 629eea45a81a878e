"""A long run with faults of all kinds, then quiet: memory, descriptors, permits and holds are back where they were."""

import asyncio
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gateway.books import journal
from loadtests.processes import StubProcess, start_stub
from tests.crowd import Account, Answer, Crowd, Numbers, accounts, wrong
from tests.processes import Gateway
from tests.prove.state import SEED, STATE, keep, provenance, results, say
from tests.scenarios.asking import chat, order, plain

NAME = "soak"
SOAK_S = float(os.environ.get("SOAK_S", 20 * 60))
WARM_UP_SHARE = 0.15  # of the soak, before what it must come back to is measured
QUIET_S_MAX = 30.0  # for what is going on to end
IDLE_S = 6.0  # for unused connections to servers to be closed, which takes timeouts.idle_s
CLIENTS = 60
SAMPLE_S = 2.0
TROUBLE_S = (1.0, 4.0)  # between kills and freezes of servers
# How far from «where they were» counts as back.
RSS_BYTES_MORE = 24 * 2**20
RSS_SHARE_MORE = 0.15
DESCRIPTORS_MORE = 4
THREADS_MORE = 2

FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"at": 20},
    "cut_utf8": {"at": 5},
    "cut_event": {"at": 10},
    "drip": {},
    "silence": {},
    "silence_after": {"at": 15},
    "error_then_done": {"at": 8},
    "abort_finish": {"at": 12},
    "eof_no_done": {"at": 9},
    "status": {"status": 500},
    "no_ids": {},
    "bad_ids": {"at": 6},
    "comments_only": {"at": 4},
    "garbage": {"at": 7},
    "wrong_usage": {},
    "big_event": {"at": 3, "bytes": 200_000},
}
# total_s also ends plain answers that never come: their silence tells nothing.
TIMEOUTS = {"first_token_s": 3, "between_tokens_s": 2, "probe_every_s": 0.5, "client_stall_s": 3, "total_s": 6}


class SlowAnswer(Answer):
    """One that reads nothing for a while, again and again."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(0.2, self._read_on)

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


class RudeCrowd(Crowd):
    """Clients whose servers fail, who hang up, and who read slowly."""

    def wish(self, account: Account) -> Answer:
        rng = self.rng
        said: dict[str, Any] = {"tokens": rng.randint(5, 150), "per_chunk": rng.choice([1, 4, 16])}
        said |= {"tokens_per_s": rng.choice([0, 100, 200]), "ttft_s": rng.choice([0, 0, 0.3])}
        if rng.random() < 0.3:
            fault = rng.choice(list(FAULTS))
            said |= {"fault": fault, **FAULTS[fault], "once": rng.random() < 0.8}
        ask = plain if rng.random() < 0.15 else chat
        body = ask(f"{rng.random()} {order(**said)}", **rng.choice([{}, {}, {"n": 2}, {"stop": ["zebra"]}]))
        kind = SlowAnswer if rng.random() < 0.1 else Answer
        return kind(account, body, rng.randint(1, 60) if rng.random() < 0.15 else None)


class Servers:
    """Stub servers on ports that stay theirs, and the trouble they get into."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self._rng = rng
        self.all: list[StubProcess] = [start_stub() for _ in range(count)]
        self.kills = self.freezes = 0

    async def trouble(self, over: asyncio.Event) -> None:
        """Kill one and start it again, or freeze one for a while, until it is over."""
        while not over.is_set():
            await asyncio.sleep(self._rng.uniform(*TROUBLE_S))
            number = self._rng.randrange(len(self.all))
            if self._rng.random() < 0.5:
                self.kills += 1
                await asyncio.to_thread(self.all[number].kill)
                await asyncio.sleep(self._rng.uniform(0.2, 2))
                self.all[number].stop()
                self.all[number] = await asyncio.to_thread(start_stub, port=self.all[number].port)
            else:
                self.freezes += 1
                self.all[number].freeze()
                await asyncio.sleep(self._rng.uniform(0.2, 4))
                self.all[number].thaw()

    def open(self) -> int:
        """Answers that some server is still making."""
        return sum(one.stats()["open_streams"] for one in self.all)

    def stop(self) -> None:
        for one in self.all:
            one.thaw()
            one.stop()


def sample(gateway: Gateway, began_s: float) -> dict[str, float]:
    """What the gateway has of everything, now."""
    process = Path(f"/proc/{gateway.process.pid}")
    return {
        "at_s": round(time.monotonic() - began_s, 1),
        "rss_mb": round(gateway.rss_bytes() / 2**20, 1),
        "descriptors": len(os.listdir(process / "fd")),
        "threads": len(os.listdir(process / "task")),
        "holds": gateway.metric("holdfast_holds"),
        "in_flight": gateway.metric("holdfast_requests_in_flight"),
        "load": gateway.metric("holdfast_replica_load"),
    }


async def quiet(gateway: Gateway, servers: Servers, began_s: float) -> dict[str, float]:
    """Wait until nothing is going on, and idle connections are closed; then look."""

    def busy() -> bool:
        now = sample(gateway, began_s)
        return bool(now["holds"] or now["in_flight"] or now["load"] or servers.open())

    for _ in range(int(QUIET_S_MAX / 0.2)):
        if not await asyncio.to_thread(busy):
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(IDLE_S)
    now = sample(gateway, began_s)
    return now | {"held_tokens": sum(one.held for one in gateway.balances()), "open_at_servers": servers.open()}


async def soak(folder: Path, soak_s: float) -> dict[str, Any]:
    """Warm up, look, make trouble for `soak_s` seconds in all, look again."""
    rng = random.Random(SEED)
    servers = Servers(3, rng)
    try:
        starting = asyncio.to_thread(
            Gateway, folder, [one.url for one in servers.all], standby=False, timeouts=TIMEOUTS
        )
        with await starting as gateway:
            return await watched(gateway, servers, rng, soak_s)
    finally:
        servers.stop()


async def watched(gateway: Gateway, servers: Servers, rng: random.Random, soak_s: float) -> dict[str, Any]:
    """The soak itself, with a sample every two seconds."""
    began_s = time.monotonic()
    known = accounts(gateway, 40, rng, least=100_000, most=2_000_000)
    series: list[dict[str, float]] = []
    crowds: list[RudeCrowd] = []

    async def rough(seconds: float) -> None:
        crowd = RudeCrowd(gateway.port, known, rng)
        crowds.append(crowd)
        tasks = [asyncio.create_task(crowd.run(CLIENTS)), asyncio.create_task(servers.trouble(crowd.over))]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(min(SAMPLE_S, max(0.1, seconds / 20)))
            series.append(await asyncio.to_thread(sample, gateway, began_s))
        crowd.over.set()
        await asyncio.gather(*tasks)

    await rough(soak_s * WARM_UP_SHARE)
    before = await quiet(gateway, servers, began_s)
    await rough(soak_s * (1 - WARM_UP_SHARE))
    after = await quiet(gateway, servers, began_s)
    status = await asyncio.to_thread(gateway.stop)
    facts = journal.read(gateway.data / "journal.jsonl")
    return {
        "on": provenance(),
        "soak_s": soak_s,
        "before": before,
        "after": after,
        "series": series,
        "asked": sum(crowd.asked for crowd in crowds),
        "kills": servers.kills,
        "freezes": servers.freezes,
        "endings": Counter(fact["ending"] for fact in facts if fact["kind"] == "request.settled"),
        "wrong": [
            *wrong(gateway, known),
            *Numbers(gateway.data / "journal.jsonl").holes(),
            *settled_twice(gateway.data / "journal.jsonl"),
            *([f"exit status {status}"] if status else []),
            *gateway.faults(),
            *(said for crowd in crowds for said in crowd.stuck),
        ],
    }


def settled_twice(path: Path) -> list[str]:
    """Requests that did not end exactly once."""
    ends = Counter(fact["request_id"] for fact in journal.read(path) if fact["kind"] == "request.settled")
    asked = {fact["request_id"] for fact in journal.read(path) if fact["kind"] == "leg.opened"}
    twice = [f"{one} was settled {count} times" for one, count in ends.items() if count != 1]
    return twice[:5] + [f"{one} was never settled" for one in list(asked - set(ends))[:5]]


def leaks(done: dict[str, Any]) -> dict[str, bool]:
    """What came back to where it was."""
    before, after = done["before"], done["after"]
    rss_mb = before["rss_mb"] * (1 + RSS_SHARE_MORE) + RSS_BYTES_MORE / 2**20
    return {
        f"memory: {before['rss_mb']:.0f} MB before, {after['rss_mb']:.0f} MB after": after["rss_mb"] <= rss_mb,
        f"descriptors: {before['descriptors']} before, {after['descriptors']} after": after["descriptors"]
        <= before["descriptors"] + DESCRIPTORS_MORE,
        f"threads: {before['threads']} before, {after['threads']} after": after["threads"]
        <= before["threads"] + THREADS_MORE,
        "requests in flight, legs on servers, answers at servers: none": not any(
            after[name] for name in ("in_flight", "load", "open_at_servers")
        ),
        "holds: none, in the gateway and in the ledger": not any(after[name] for name in ("holds", "held_tokens")),
        "nobody overspent or undercharged, each request settled once, no hole in the journal, no fault in the log": (
            not done["wrong"]
        ),
    }


def run(soak_s: float = SOAK_S) -> None:
    """Soak for twenty minutes, or for SOAK_S seconds."""
    if NAME in results() and results()[NAME]["soak_s"] >= soak_s:
        return
    folder = STATE / f"soak-{time.time_ns()}"
    folder.mkdir(parents=True)
    say(f"soaking for {soak_s / 60:.1f} minutes")
    done = asyncio.run(soak(folder, soak_s))
    keep(NAME, done)
    shutil.rmtree(folder)


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    return leaks(done[NAME]) if NAME in done else {}


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words and as a drawing."""
    if NAME not in done:
        return []
    one = done[NAME]
    endings = ", ".join(f"{name} {count}" for name, count in sorted(one["endings"].items(), key=lambda pair: -pair[1]))
    return [
        f"## {one['soak_s'] / 60:.0f} minutes, {CLIENTS} clients, three servers",
        "",
        f"{one['on']}. {one['asked']} requests, a third of them hit by a fault of its own: "
        f"{', '.join(sorted(FAULTS))}; hang-ups and slow readers among them; servers killed {one['kills']} times and "
        f"frozen {one['freezes']} times. Endings: {endings}.",
        "",
        f"«Before» is after a warm-up of {one['soak_s'] * WARM_UP_SHARE / 60:.1f} minutes of the same, at rest. Within "
        f"tolerance: memory + {RSS_SHARE_MORE:.0%} and {RSS_BYTES_MORE >> 20} MB, descriptors + {DESCRIPTORS_MORE}, "
        f"threads + {THREADS_MORE}, everything else exactly.",
        "",
        "```",
        *(drawn(one["series"], name) for name in ("rss_mb", "descriptors", "in_flight", "load", "holds", "threads")),
        "```",
        "",
        "Every sample is in soak.json.",
        "",
        *(f"- wrong: {said}" for said in one["wrong"]),
    ]


def drawn(series: list[dict[str, float]], name: str, width: int = 80) -> str:
    """A line of bars, from 0 to the largest value; each bar is the largest of its share of the series."""
    values = [one[name] for one in series]
    size = max(1, -(-len(values) // width))
    bars = [max(values[at : at + size]) for at in range(0, len(values), size)]
    top = max(bars) or 1
    return f"{name:12} 0 … {max(bars):6g}  " + "".join("▁▂▃▄▅▆▇█"[min(7, int(bar / top * 8))] for bar in bars)
