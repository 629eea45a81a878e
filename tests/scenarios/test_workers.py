"""Many workers on one machine, real processes: one budget for all of them, whatever becomes of one."""

import asyncio
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.books.directories import directories
from gateway.books.ledger.tables import read_balances
from loadtests.processes import start_stub
from tests.loadtests.raw_client import Seen
from tests.processes import HOLDFAST, START_S_MAX, Gateway, id_of, until
from tests.scenarios.asking import ask, chat, error, ids_of, order, prompt_tokens
from tests.scenarios.test_admin import admin

WORKERS = 4
BODY = chat("hello", max_tokens=100)


def pids(gateway: Gateway) -> list[int]:
    """The processes of its workers."""
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def settled(gateway: Gateway, key: str) -> int:
    """What a key was charged, once nothing of it is held any more."""
    return gateway.paid(key).spent


def books(gateway: Gateway) -> int:
    """How many workers have charged anything; that journals and ledgers are equal."""
    told = json.loads(gateway.cli("journal", "replay", "--check", "--json"))
    assert (told["differences"], told["facts_lost"]) == ([], 0)
    return sum(any(one.spent for one in read_balances(path)) for path in directories(gateway.data))


async def crowd(gateway: Gateway, key: str, budget: int, at_once: int = 32, until_s: float = 30.0) -> list[Seen]:
    """Ask again and again, so many at once, until nothing is left to be had."""
    seen, end = [], time.monotonic() + until_s
    spent = asyncio.Event()

    async def client() -> None:
        while not spent.is_set() and time.monotonic() < end:
            try:
                one = await ask(gateway, key, BODY)
            except ConnectionResetError:  # by a worker that was killed before it took the connection
                continue
            seen.append(one)
            if one.head and one.status == 402:
                spent.set()
            elif not one.head or one.status != 200:  # without one, it was with the worker that was killed
                await asyncio.sleep(0.05)

    await asyncio.gather(*[client() for _ in range(at_once)])
    return seen


async def patient(gateway: Gateway, key: str, body: dict) -> Seen:
    """Ask again while another worker has what is lacked, as clients do."""
    for _ in range(5):
        seen = await ask(gateway, key, body)
        if seen.status != 429:
            return seen
        await asyncio.sleep(0.5)
    return seen


def delivered(seen: list[Seen]) -> int:
    """Tokens of prompts and answers that clients have seen."""
    given = [one for one in seen if one.head and one.status == 200]
    return sum(len(ids_of(one)) for one in given) + prompt_tokens(BODY) * len(given)


async def test_a_budget_is_one_for_all_workers(stubs, start_gateway):
    """With more demand than budget: at least 99 in 100 tokens are delivered, none too many, and all books agree."""
    budget = 20_000
    gateway = start_gateway([stubs[0].url], workers=WORKERS)
    key = gateway.key("crowd", budget)

    seen = await crowd(gateway, key, budget)

    charged = settled(gateway, key)
    assert charged == delivered(seen)
    assert 0.99 * budget <= charged <= budget
    assert books(gateway) == WORKERS
    assert any(error(one)["code"] == "budget_exceeded" for one in seen if one.status != 200)
    assert gateway.stop() == 0
    assert settled(gateway, key) == charged


async def test_a_killed_worker_charges_what_it_held_and_is_started_again(stubs, start_gateway):
    """In mid-run, by SIGKILL: never more than the budget is charged or delivered, and the others go on."""
    budget = 20_000
    gateway = start_gateway([stubs[0].url], workers=WORKERS)
    key = gateway.key("crowd", budget)
    before = pids(gateway)
    running = asyncio.create_task(crowd(gateway, key, budget, until_s=8.0))
    await asyncio.to_thread(until, lambda: any(one.spent > 1_000 for one in gateway.balances()))

    os.kill(before[0], signal.SIGKILL)
    seen = await running

    charged = settled(gateway, key)
    assert delivered(seen) <= charged <= budget
    assert charged >= 0.99 * budget
    assert len(until(lambda: len(found := pids(gateway)) == WORKERS and found)) == WORKERS
    assert set(pids(gateway)) - set(before)
    assert books(gateway) == WORKERS
    assert "worker.died" in gateway.log()
    assert gateway.stop() == 0


async def test_a_parent_that_is_killed_leaves_nobody_behind(stubs, start_gateway):
    """Its workers come to their end, and the directory can be used again."""
    gateway = start_gateway([stubs[0].url], workers=2)
    workers = pids(gateway)

    os.kill(gateway.process.pid, signal.SIGKILL)

    gateway.process.wait()
    assert len(workers) == 2
    until(lambda: not any(map(lives, workers)))


async def test_a_directory_of_one_gateway_comes_to_many_with_its_spend(stubs, start_gateway):
    """What was spent before counts for all workers, and what many spent for fewer of them, to the last token."""
    gateway = start_gateway([stubs[0].url])
    key = gateway.key("mover", 400)
    seen = [await ask(gateway, key, BODY)]
    assert gateway.stop() == 0
    for workers in (3, 1):
        gateway.restart(workers=workers)
        seen += [await patient(gateway, key, chat("hello", max_tokens=20)) for _ in range(4)]
        assert settled(gateway, key) == delivered(seen)
        if workers == 3:
            assert gateway.stop() == 0

    seen.append(await patient(gateway, key, BODY))
    refused = await ask(gateway, key, BODY)

    assert [one.status for one in seen] == [200] * 10
    assert settled(gateway, key) == delivered(seen) == 400
    assert (refused.status, error(refused)["code"]) == (402, "budget_exceeded")
    assert len(directories(gateway.data)) == 3
    (line,) = json.loads(gateway.cli("keys", "list", "--json"))
    assert [(one["spent"], one["free"]) for one in line["budgets"]] == [(400, 0)]


async def test_a_reset_says_what_it_cannot_reset(stubs, start_gateway):
    """The ledger of the gateway that was alone before there were workers: it has to end first."""
    gateway = start_gateway([stubs[0].url])
    key = gateway.key("reset", 400)
    assert (await ask(gateway, key, BODY)).status == 200
    spent = settled(gateway, key)
    assert gateway.stop() == 0
    gateway.restart(workers=2)
    command = [HOLDFAST, "budgets", "reset", f"key:{id_of(key)}", "tokens", "--id", "r1", "--data", gateway.data]

    first = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    path, body = f"/admin/budgets/key:{id_of(key)}/reset", {"kind": "tokens", "id": "r2"}
    answer = await asyncio.to_thread(admin, gateway, "POST", path, body, status=409)
    left = settled(gateway, key)
    assert gateway.stop() == 0
    again = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    gateway.restart(workers=2)

    assert (first.returncode, "do this once more under the id r1" in first.stderr) == (1, True)
    assert "under the id r2" in answer["message"]
    assert (left, again.returncode, settled(gateway, key)) == (spent, 0, 0)
    assert (await patient(gateway, key, chat("hello", max_tokens=300))).status == 200


@pytest.mark.parametrize("pinned", [True, False])
def test_each_worker_stays_on_a_core_where_it_is_told_to(stubs, start_gateway, pinned):
    """All of its threads do, also of one that was started again; else they are anywhere. Many workers share cores."""
    cores, count = sorted(os.sched_getaffinity(0)), 3
    gateway = start_gateway([stubs[0].url], workers=count, workers_pinned=pinned)
    first = pids(gateway)[0]
    os.kill(first, signal.SIGKILL)
    until(lambda: first not in pids(gateway) and len(pids(gateway)) == count)
    admin = [f"http://127.0.0.1:{gateway.admin_port + number}" for number in range(count)]
    until(lambda: all(gateway.get("/readyz", one)[0] == 200 for one in admin))

    found = sorted(where(pid) for pid in pids(gateway))

    assert found == sorted([(cores[number % len(cores)],) if pinned else tuple(cores) for number in range(count)])


def test_a_gateway_alone_stays_on_a_core_where_it_is_told_to(stubs, start_gateway):
    """On the first."""
    gateway = start_gateway([stubs[0].url], workers_pinned=True)

    assert where(gateway.process.pid) == (min(os.sched_getaffinity(0)),)


def where(pid):
    """The cores that a process may use, which are the same for all of its threads."""
    found = set()
    for one in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            found.add(tuple(sorted(os.sched_getaffinity(int(one.name)))))
    (cores,) = found
    return cores


def test_a_worker_that_is_told_to_end_at_once_ends_cleanly(stubs, start_gateway):
    """A signal that comes before it can be handled is not lost, and kills nobody."""
    for delay_s in (0.0, 0.05, 0.15):
        gateway = start_gateway([stubs[0].url], workers=2, wait=False)
        deadline = time.monotonic() + START_S_MAX
        while len(pids(gateway)) < 2:  # looked for without a rest: soon after, the moment is over
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay_s)
        assert gateway.stop() == 0


async def test_streams_end_cleanly_where_the_vault_is_lost(tokenizer, start_gateway):
    """Charged for what they delivered; nothing new is let in, until the vault is there again."""
    with start_stub(tokens_per_s=40) as stub:
        gateway = start_gateway([stub.url], workers=2, tokenizer=tokenizer)
        key = gateway.key("streamer", 5_000)
        body = chat(order(tokens=2_000), max_tokens=2_000)
        streams = [asyncio.create_task(ask(gateway, key, body)) for _ in range(4)]
        await asyncio.to_thread(until, lambda: any(one.held for one in gateway.balances()))
        await asyncio.sleep(0.5)
        vault = sorted(gateway.data.glob("vault.sqlite3*"))
        for path in vault:
            path.rename(gateway.folder / path.name)

        seen = await asyncio.wait_for(asyncio.gather(*streams), 5)
        refused = [await ask(gateway, key, BODY) for _ in range(8)]
        ready = gateway.get("/readyz", gateway.admin_url)
        for path in gateway.data.glob("vault.sqlite3*"):
            path.unlink()
        for path in vault:
            (gateway.folder / path.name).rename(path)
        again = await asyncio.to_thread(until, lambda: gateway.get("/readyz", gateway.admin_url)[0] == 200)

        assert {error(one)["code"] for one in seen} == {"books_unavailable"}
        assert settled(gateway, key) == sum(len(ids_of(one)) + prompt_tokens(body) for one in seen)
        assert {(one.status, error(one)["code"]) for one in refused} == {(503, "books_unavailable")}
        assert (ready[0], again) == (503, True)
        assert gateway.stop() == 0


def test_workers_that_cannot_start_end_the_parent(stubs, start_gateway):
    """With the reason, rather than being started again and again: here another gateway works on their books."""
    gateway = start_gateway([stubs[0].url], workers=2)
    command = [HOLDFAST, "serve", "--config", gateway.config_file, "--port", "0", "--admin-port", "0"]

    same = subprocess.run(command, capture_output=True, text=True, timeout=30)
    alone = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, timeout=30)

    for other in (same, alone):
        assert (other.returncode, "in use by another gateway" in other.stderr) == (1, True)
    assert len(pids(gateway)) == 2
