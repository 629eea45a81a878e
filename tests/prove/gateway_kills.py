"""kill -9 of the gateway under a crowd on small budgets, many times: what the ledger says after each."""

import asyncio
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from loadtests.processes import start_stub
from tests.crowd import Account, Crowd, Numbers, accounts, spend_up, wrong
from tests.processes import Gateway
from tests.prove.state import SEED, STATE, keep, provenance, quantile, results, say

NAME = "gateway-kills"
KILLS = 200
CLIENTS = 400
FRESH = 200  # accounts with something left, at the beginning of a round
KILL_S_MAX = 3.0
KEPT_EVERY = 10  # rounds
SPENT_UP_EVERY = 5  # rounds


def run() -> None:
    """Kill the gateway 200 times at seeded moments, with 400 streams at once, and look at its books each time."""
    done = results().get(NAME, [])
    if len(done) >= KILLS:
        return
    folder = STATE / f"gateway-kills-{time.time_ns()}"
    folder.mkdir()
    with start_stub() as first, start_stub() as second:
        asyncio.run(rounds(folder, [first.url, second.url], done))
    shutil.rmtree(folder)


async def rounds(folder: Path, upstreams: list[str], done: list[dict[str, Any]]) -> None:
    """All rounds that are left, on one data directory; a fault is kept, never done again."""
    gateway = await asyncio.to_thread(Gateway, folder, upstreams, standby=False)
    numbers = Numbers(gateway.data / "journal.jsonl")
    known: list[Account] = []
    try:
        while len(done) < KILLS:
            rng = random.Random(SEED + len(done))
            fresh = [one for one in known if not one.spent_up]
            fresh += (more := accounts(gateway, max(0, FRESH - len(fresh)), rng))
            known += more
            one = await killed(gateway, fresh, rng)
            begin_s = time.monotonic()
            gateway = await asyncio.to_thread(Gateway, folder, upstreams, standby=False)
            one["ready_s"] = time.monotonic() - begin_s
            one["wrong"] += wrong(gateway, known) + numbers.holes()
            if len(done) % SPENT_UP_EVERY == 0:
                one["wrong"] += await spent_up(gateway, rng.choice(fresh))
            spent = {balance.scope: balance.spent for balance in gateway.balances()}
            one["received"] = sum(account.received for account in known)
            one["charged"] = sum(spent.get(f"key:{account.key_id}", 0) for account in known)
            one["accounts"] = len(known)
            one["exhausted"] = sum(spent.get(f"key:{account.key_id}", 0) == account.budget for account in known)
            done.append(one)
            if len(done) % KEPT_EVERY == 0 or one["wrong"] or len(done) == KILLS:
                keep(NAME, done)
                say(f"kill {len(done)} of {KILLS}: {one['open']} streams open, wrong: {one['wrong'] or 'nothing'}")
        faults = [] if gateway.stop() == 0 else ["the exit status was not 0"]
        done[-1]["wrong"] += faults + gateway.faults()
        keep(NAME, done)
    finally:
        gateway.kill()


async def killed(gateway: Gateway, fresh: list[Account], rng: random.Random) -> dict[str, Any]:
    """One kill under the crowd."""
    crowd = Crowd(gateway.port, fresh, rng)
    running = asyncio.create_task(crowd.run(CLIENTS))
    after_s = rng.uniform(0.05, KILL_S_MAX)
    await asyncio.sleep(after_s)
    open_streams = crowd.open
    gateway.kill()
    await running
    one = {"on": provenance(), "after_s": after_s, "open": open_streams, "asked": crowd.asked}
    return one | {"refused": crowd.refused, "wrong": crowd.stuck}


async def spent_up(gateway: Gateway, account: Account) -> list[str]:
    """What is wrong with spending what is left of an account."""
    try:
        await spend_up(gateway, account)
    except AssertionError as error:
        return [f"{account.key_id}: {error}"]
    return []


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    rounds = done.get(NAME)
    if not rounds:
        return {}
    crowded = sum(one["open"] >= CLIENTS * 0.9 for one in rounds)
    return {
        f"{KILLS} kills, at least half of them under {CLIENTS} streams": len(rounds) >= KILLS <= 2 * crowded,
        "after each: nothing held, no key charged less than its clients received or more than its budget, the ledger's "
        "audit empty, the journal without a hole": not any(one["wrong"] for one in rounds),
        "budgets did bind": rounds[-1]["exhausted"] > 0,
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    rounds = done.get(NAME)
    if not rounds:
        return []
    last, first = rounds[-1], rounds[0]
    ready = [one["ready_s"] for one in rounds]
    over = last["charged"] - last["received"]
    return [
        f"## {len(rounds)} times kill -9 of the gateway, under up to {CLIENTS} clients on small budgets",
        "",
        f"{first['on']} to {last['on']}. Killed between {min(one['after_s'] for one in rounds):.2f} s and "
        f"{max(one['after_s'] for one in rounds):.2f} s after the first client came, with "
        f"{statistics.median(one['open'] for one in rounds):.0f} requests open (median; at most "
        f"{max(one['open'] for one in rounds)}). {sum(one['asked'] for one in rounds)} requests, "
        f"{sum(one['refused'] for one in rounds)} of them refused. {last['accounts']} keys, {last['exhausted']} of "
        "them spent to the last token.",
        "",
        f"Clients received {last['received']} tokens and were charged {last['charged']}: {over} more "
        f"({over / max(1, last['received']):.1%}), leased when the gateway died, which may have been delivered.",
        "",
        f"From start to ready: {statistics.median(ready):.2f} s (median), {quantile(ready, 0.99):.2f} s (p99).",
        "",
        *(f"- round {number}: {said}" for number, one in enumerate(rounds) for said in one["wrong"]),
    ]
