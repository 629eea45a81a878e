"""Half an hour at half of what this machine carries, with faults of all kinds: memory does not grow, nothing leaks.

First a crowd is doubled until that brings no more answers: that is what it carries. It goes on until memory stands
still: tables that are bounded fill up, which takes some ten thousand requests. Then clients come by chance, half as
many a second, whatever becomes of those before: a look at rest, the soak, and a look at rest. At last as many requests
as there are permits are to run at once, for a permit that leaked is one that nobody gets.
"""

import asyncio
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.books import journal
from tests.crowd import Numbers, accounts, wrong
from tests.processes import Gateway
from tests.prove.rough import FAULTS, RudeCrowd, Servers
from tests.prove.seats import MORE_THAN_SEATS, seated
from tests.prove.slope import Slope, slope
from tests.prove.state import SEED, STATE, keep, provenance, results, say

NAME = "soak"
SOAK_S = float(os.environ.get("SOAK_S", 30 * 60))
CROWDS = (30, 60, 120, 240)  # clients that ask again as soon as they are answered
CROWD_S, CROWD_SHARE = 15.0, 0.1  # of each; at most such a share of the soak
MORE = 1.1  # times as many answers: then twice the crowd was worth it
HALF = 0.5
STILL_S, STILL_SHARE = 480.0, 0.2  # that memory must have stood still for; at most such a share of the soak
WARM_UP_S_MAX, STEP_S = 30 * 60.0, 60.0  # whether it does or not; from one look to the next
QUIET_S_MAX = 30.0  # for what is going on to end
IDLE_S = 6.0  # for unused connections to servers to be closed, which takes timeouts.idle_s
REST_LOOKS = 5  # at rest: the gateway asks servers how they are now and then
SAMPLE_S = 2.0
SERVERS = 3
ACCOUNTS, ACCOUNT_TOKENS_MAX = 40, 20_000_000  # some are spent within the hour, so that load falls by little
SEATS = 64  # of each server: permits
# How far from «where they were» counts as back, where memory has no slope; and descriptors, threads.
RSS_BYTES_MORE = 24 * 2**20
RSS_SHARE_MORE = 0.15
KB_PER_HOUR_MAX = 4096  # by which memory may grow under load, however wide its noise is: 2 MB in half an hour
NO_LINE = "memory under load: too few samples to say whether it grows"
DESCRIPTORS_MORE = 0
THREADS_MORE = 2
DRAWN = ("rss_mb", "descriptors", "in_flight", "waiting", "load", "holds", "threads")

# total_s also ends plain answers that never come: their silence tells nothing.
TIMEOUTS = {"first_token_s": 3, "between_tokens_s": 2, "probe_every_s": 0.5, "client_stall_s": 3, "total_s": 6}
HEALTH = {"flap_wait_s_max": 5, "breaker_open_s_max": 5}  # they are killed all the time


def run(soak_s: float = SOAK_S) -> None:
    """Soak for thirty minutes, or for SOAK_S seconds."""
    if NAME in results() and results()[NAME]["soak_s"] >= soak_s:
        return
    folder = STATE / f"soak-{time.time_ns()}"
    folder.mkdir(parents=True)
    say(f"soaking for {soak_s / 60:.1f} minutes, once memory stands still: within {WARM_UP_S_MAX / 60:.0f} minutes")
    done = asyncio.run(soak(folder, soak_s))
    keep(NAME, done)
    shutil.rmtree(folder)


async def soak(folder: Path, soak_s: float) -> dict[str, Any]:
    """All of it. soak_s: between the two looks."""
    rng = random.Random(SEED)
    servers = Servers(SERVERS, rng)
    urls, seats = [one.url for one in servers.all], {"per_replica": SEATS}
    try:
        starting = asyncio.to_thread(
            Gateway, folder, urls, standby=False, timeouts=TIMEOUTS, health=HEALTH, admission=seats
        )
        with await starting as gateway:
            return await Soak(gateway, servers, rng).go(soak_s)
    finally:
        servers.stop()


class Soak:
    """One gateway, and all that happens to it, with a sample every two seconds."""

    def __init__(self, gateway: Gateway, servers: Servers, rng: random.Random) -> None:
        self._gateway, self._servers, self._rng = gateway, servers, rng
        self._began_s, self._on = time.monotonic(), provenance()
        self._known = accounts(gateway, ACCOUNTS, rng, least=100_000, most=ACCOUNT_TOKENS_MAX)
        self._crowds: list[RudeCrowd] = []
        self._series: list[dict[str, float]] = []

    async def go(self, soak_s: float) -> dict[str, Any]:
        """What came of it."""
        carried = await self._carried(min(CROWD_S, CROWD_SHARE * soak_s))
        clients, most_per_s = max(carried, key=lambda one: one[1])
        say(f"{most_per_s:.0f} requests a second are carried; warming up with {clients} clients")
        warm_up_s = await self._warm_up(clients, soak_s)
        before = await self._quiet()
        say(f"soaking: {before['rss_mb']:.1f} MB, {before['descriptors']:.0f} descriptors at rest")
        half_per_s = HALF * most_per_s
        await self._rough(soak_s, lambda crowd: crowd.come(half_per_s))
        after = await self._quiet()
        seats = await seated(self._gateway, SERVERS, SEATS)
        status = await asyncio.to_thread(self._gateway.stop)
        return {
            "on": self._on, "soak_s": soak_s, "carried": carried, "half_per_s": half_per_s,
            "warm_up_s": warm_up_s, "before": before, "after": after, "seats": seats, "series": self._series,
            "asked": self._crowds[-1].asked,
            "asked_in_all": sum(one.asked for one in self._crowds),
            "turned_away": sum(one.turned_away for one in self._crowds),
            "kills": self._servers.kills, "freezes": self._servers.freezes, **self._books(status),
        }  # fmt: skip

    async def _carried(self, seconds: float) -> list[tuple[int, float]]:
        """Clients, and answers a second, of ever larger crowds; the last one brought little more, or is the largest."""
        found: list[tuple[int, float]] = []
        for clients in CROWDS:
            crowd = self._crowd()
            task = asyncio.create_task(crowd.run(clients))
            await asyncio.sleep(seconds)
            found.append((clients, (crowd.asked - crowd.open) / seconds))
            crowd.over.set()
            await task
            if len(found) > 1 and found[-1][1] < MORE * found[-2][1]:
                break
        return found

    async def _warm_up(self, clients: int, soak_s: float) -> float:
        """Have a crowd ask until memory stands still, or long enough; how many seconds that took."""
        began_s, still_s = time.monotonic(), min(STILL_S, STILL_SHARE * soak_s)
        await self._rough(still_s, lambda crowd: crowd.run(clients))
        while (took_s := time.monotonic() - began_s) < WARM_UP_S_MAX and not stands_still(self._series, still_s):
            await self._rough(STEP_S, lambda crowd: crowd.run(clients))
        return took_s

    async def _rough(self, seconds: float, come: Callable[[RudeCrowd], Coroutine[Any, Any, None]]) -> None:
        crowd = self._crowd()
        tasks = [asyncio.create_task(come(crowd)), asyncio.create_task(self._servers.trouble(crowd.over))]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(min(SAMPLE_S, max(0.1, seconds / 20)))
            if (now := await asyncio.to_thread(self._sample)) is not None:
                self._series.append(now)
        crowd.over.set()
        await asyncio.gather(*tasks)

    def _crowd(self) -> RudeCrowd:
        self._crowds.append(RudeCrowd(self._gateway.port, self._known, self._rng))
        return self._crowds[-1]

    def _sample(self) -> dict[str, float] | None:
        """What the gateway has of everything, now; None where it is too busy to say."""
        process = Path(f"/proc/{self._gateway.process.pid}")
        if not (said := self._gateway.metrics()):
            return None
        return {
            "at_s": round(time.monotonic() - self._began_s, 1),
            "rss_mb": round(self._gateway.rss_bytes() / 2**20, 2),
            "descriptors": len(os.listdir(process / "fd")),
            "threads": len(os.listdir(process / "task")),
            "holds": said["holdfast_holds"],
            "in_flight": said["holdfast_requests_in_flight"],
            "waiting": said["holdfast_waiting"],
            "load": sum(value for name, value in said.items() if name.startswith("holdfast_replica_load{")),
        }

    async def _quiet(self) -> dict[str, float]:
        """Wait until nothing is going on, and idle connections are closed; then look."""

        def busy() -> bool:
            now = self._sample()
            names = ("holds", "in_flight", "waiting", "load")
            return now is None or any(now[name] for name in names) or bool(self._servers.open())

        for _ in range(int(QUIET_S_MAX / 0.2)):
            if not await asyncio.to_thread(busy):
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(IDLE_S)
        looks = list[dict[str, float]]()
        for _ in range(REST_LOOKS):
            now = await asyncio.to_thread(self._sample)
            assert now is not None, "at rest the gateway does not say how it is"
            looks.append(now)
            await asyncio.sleep(0.2)
        held = sum(one.held for one in self._gateway.balances())
        least = {name: min(one[name] for one in looks) for name in looks[0]}
        return least | {"held_tokens": held, "open_at_servers": self._servers.open()}

    def _books(self, status: int) -> dict[str, Any]:
        path = self._gateway.data / "journal.jsonl"
        ends, endings, asked = Counter[str](), Counter[str](), set[str]()
        for fact in journal.read(path):
            if fact["kind"] == "request.settled":
                ends[fact["request_id"]] += 1
                endings[fact["ending"]] += 1
            elif fact["kind"] == "leg.opened":
                asked.add(fact["request_id"])
        found = [f"{one} was settled {count} times" for one, count in ends.items() if count != 1][:5]
        found += [f"{one} was never settled" for one in list(asked - set(ends))[:5]]
        found += [*wrong(self._gateway, self._known), *Numbers(path).holes(), *self._gateway.faults()]
        found += [f"exit status {status}"] if status else []
        return {"endings": endings, "wrong": [*found, *(said for crowd in self._crowds for said in crowd.stuck)]}


def memory(series: Sequence[dict[str, float]], since_s: float) -> Slope | None:
    """What memory did since then, in MB; None where that was too short to say."""
    with suppress(ValueError):
        return slope([(one["at_s"], one["rss_mb"]) for one in series if one["at_s"] > since_s])
    return None


def stands_still(series: Sequence[dict[str, float]], still_s: float) -> bool:
    """Whether memory did for the last so many seconds; also where they are too few to say."""
    line = memory(series, series[-1]["at_s"] - still_s)
    return line is None or line.inside_noise


def leaks(done: dict[str, Any]) -> dict[str, bool]:
    """What came back to where it was."""
    before, after, seats = done["before"], done["after"], done["seats"]
    rss_mb = before["rss_mb"] * (1 + RSS_SHARE_MORE) + RSS_BYTES_MORE / 2**20
    at_rest = f"memory at rest: {before['rss_mb']:.1f} MB before, {after['rss_mb']:.1f} MB after"
    found = {at_rest: after["rss_mb"] <= rss_mb}
    if (line := memory(done["series"], before["at_s"])) is None:
        found[NO_LINE] = False
    else:
        hour = [1024 * 3600 * one for one in (line.per_s, line.low, line.high)]
        grows = f"memory under load: {hour[0]:+.0f} KB an hour ({hour[1]:+.0f} to {hour[2]:+.0f}), "
        in_all = f"{1024 * line.grown:+.0f} KB in all, inside its noise of {1024 * line.noise:.0f} KB "
        found[f"{grows}{in_all}and at most {KB_PER_HOUR_MAX} KB an hour"] = (
            line.inside_noise and hour[0] <= KB_PER_HOUR_MAX
        )
    return found | {
        f"descriptors: {before['descriptors']} before, {after['descriptors']} after": after["descriptors"]
        <= before["descriptors"] + DESCRIPTORS_MORE,
        f"threads: {before['threads']} before, {after['threads']} after": after["threads"]
        <= before["threads"] + THREADS_MORE,
        "requests in flight or waiting, legs on servers, answers at servers: none": not any(
            after[name] for name in ("in_flight", "waiting", "load", "open_at_servers")
        ),
        "holds: none, in the gateway and in the ledger": not any(after[name] for name in ("holds", "held_tokens")),
        f"permits: {seats['ran']} requests run at once, of {SERVERS * SEATS} for which there are permits, and the next "
        f"{seats['waited']} wait, of {MORE_THAN_SEATS}": (seats["ran"], seats["waited"])
        == (SERVERS * SEATS, MORE_THAN_SEATS),
        f"breakers: {seats['closed']} of {SERVERS} are closed again": seats["closed"] == SERVERS,
        "nobody overspent or undercharged, each request settled once, no hole in the journal, no fault in the log": (
            not done["wrong"]
        ),
    }


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    return leaks(done[NAME]) if NAME in done else {}


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words and as a drawing."""
    if NAME not in done:
        return []
    one = done[NAME]
    endings = ", ".join(f"{name} {count}" for name, count in sorted(one["endings"].items(), key=lambda pair: -pair[1]))
    carried = ", ".join(f"{clients} clients {per_s:.0f} /s" for clients, per_s in one["carried"])
    since_s = one["before"]["at_s"]
    series = [each for each in one["series"] if each["at_s"] > since_s]
    return [
        f"## {one['soak_s'] / 60:.0f} minutes at {one['half_per_s']:.0f} requests a second, three servers",
        "",
        f"{one['on']}. What this machine carries, clients and servers included, by crowds that ask again as soon as "
        f"they are answered: {carried}. Half of the most came by chance (Poisson), whatever became of those before: "
        f"{one['asked']} requests in the soak, {one['asked_in_all']} in all; {one['turned_away']} did not come: too "
        "many were there. A third of them were hit by a fault of their own: "
        f"{', '.join(sorted(FAULTS))}; hang-ups and slow readers among them; servers killed {one['kills']} times and "
        f"frozen {one['freezes']} times. Endings: {endings}.",
        "",
        f"«Before» is at rest, after a warm-up of {one['warm_up_s'] / 60:.1f} minutes with the crowd that got the most "
        f"answers: until memory had stood still for {STILL_S / 60:.0f} minutes, at most {WARM_UP_S_MAX / 60:.0f}. "
        "Memory under load is a line through its samples by least squares; its interval of 95 % is by a moving-block "
        "bootstrap, since noise lasts; its noise is how far apart the middle 95 % of the samples are, around the "
        "line. It does not grow if the interval begins below 0, or if what the line adds in all is less than the "
        f"noise, and not by more than {KB_PER_HOUR_MAX} KB an hour, whatever the noise is. Within tolerance: "
        f"memory at rest + {RSS_SHARE_MORE:.0%} and {RSS_BYTES_MORE >> 20} MB, descriptors + "
        f"{DESCRIPTORS_MORE}, threads + {THREADS_MORE}, everything else exactly.",
        "",
        "```",
        *(drawn(series, name) for name in DRAWN),
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
