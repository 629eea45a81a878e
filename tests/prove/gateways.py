"""Four gateways, four hundred clients, one set of budgets; on SQLite and on Redis; and what may go wrong meanwhile."""

import asyncio
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway.books.directories import directories, journals
from gateway.books.ledger.contract import Place
from gateway.books.ledger.tables import ledger_file, read_balances
from gateway.books.replay import differences, replay_all
from gateway.books.vault.contract import LEASE_S, Standing, Vault
from gateway.books.vault.redis import RedisVault
from gateway.books.vault.redis_server import Login
from gateway.books.vault.sqlite import SqliteVault
from guards.budget import Unit
from loadtests.processes import StubProcess, start_stub
from loadtests.switch import SwitchProcess
from tests.crowd import REST_S, Account, Answer, Crowd, audit
from tests.processes import Gateway
from tests.prove.state import SEED, STATE, keep, provenance, results, say
from tests.redis_servers import RedisServer

NAME = "gateways"
GATEWAYS, CLIENTS = 4, 400
ORGS, KEYS = 4, 15  # of each org; half of them have small budgets of their own
TOKENS, MONEY = 60_000, 320_000  # of an org; two of them are limited by one, and two by the other
AMPLE = 10**9
PRICE = {"model": "stub", "input": 2, "output": 6}  # dollars for a million tokens: micro-dollars for one
FAULT_AFTER_S, FAULT_S = 3.0, 8.0
AWAY_S = 3.0  # a killed gateway
STOPPED_S = 2 * LEASE_S
RUN_S_MAX = 75.0
USED_LEAST = 0.99
STUCK_S = 12.0  # beyond all timeouts of a request: then it hangs
LOGIN = Login(tls=False, username=None, password=None, db=0)

Fault = Callable[["House"], Awaitable[None]]


class Client(Account):
    """A key, its org, and what its clients were delivered."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.org = f"org-{number % ORGS}"
        small = number % (2 * ORGS) < ORGS
        super().__init__(f"sk-{number}-{rng.getrandbits(64):016x}", rng.randint(150, 4000) if small else AMPLE)

    @property
    def cost(self) -> int:
        """At least, in micro-dollars: each answer is rounded up."""
        return 2 * (self.received - self.output) + 6 * self.output

    def declared(self) -> dict[str, Any]:
        """As the configuration has it."""
        digest = sha256(self.secret.encode()).hexdigest()
        return {"user": "somebody", "org": self.org, "sha256": digest, "limits": [f"{self.budget}"]}


class Patient(Crowd):
    """Clients who go where there is something left, to any of the gateways."""

    ports: tuple[int, ...] = ()

    def wish(self, account: Account) -> Answer:
        self.port = self.rng.choice(self.ports)
        return super().wish(account)

    async def _ask(self, account: Account) -> Answer | None:
        """Where one gateway is away they go to another."""
        answer = await super()._ask(account)
        if answer is not None or self.over.is_set():
            return answer
        await asyncio.sleep(REST_S)
        return await self._ask(account)

    def left(self) -> list[Account]:
        """Keys of which nobody was told that they are spent."""
        return [one for one in self.accounts if not one.spent_up]


class House:
    """The gateways and what they share. data: of each with books of its own; victims: processes that serve."""

    def __init__(self, folder: Path, clients: list[Client], upstreams: list[str]) -> None:
        self.folder, self.clients, self.upstreams = folder, clients, upstreams
        self.gateways: list[Gateway] = []
        self.redis: RedisServer | None = None
        self.switch: SwitchProcess | None = None
        self.done: list[str] = []

    def said(self) -> dict[str, Any]:
        """What all gateways' configurations say."""
        limits = [[f"{TOKENS}", "1000 USD"] if org % 2 else [f"{MONEY / 1e6} USD"] for org in range(ORGS)]
        return {
            "keys": [one.declared() for one in self.clients],
            "budgets": [{"org": f"org-{org}", "limits": limits[org]} for org in range(ORGS)],
            "prices": [PRICE],
            "timeouts": {"total_s": 60, "drain_s": 2},
        }

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(one.port for one in self.gateways)

    @property
    def data(self) -> list[Path]:
        return [path for one in self.gateways for path in (directories(one.data) or [one.data])]

    def victim(self) -> int:
        """A process that serves."""
        parent = self.gateways[0].process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(children[0]) if children else parent

    def vault(self) -> Vault:
        """Another way to it."""
        if self.redis is None:
            return SqliteVault(self.gateways[0].data, time.time)
        return RedisVault([self.redis.address], LOGIN)

    def revive(self) -> None:
        """Have all run that were killed."""
        for one in self.gateways:
            if one.process.poll() is not None:
                one.restart()

    def stop(self) -> list[str]:
        """End all of them; what was wrong with that."""
        found = [] if all([one.stop() == 0 for one in self.gateways]) else ["an exit status was not 0"]
        return found + [fault for one in self.gateways for fault in one.faults()]


@contextmanager
def on_sqlite(folder: Path, clients: list[Client], upstreams: list[str]) -> Iterator[House]:
    """Four workers of one machine."""
    house = House(folder, clients, upstreams)
    gateway = Gateway(folder, upstreams, standby=False, workers=GATEWAYS, **house.said())
    house.gateways = [gateway]
    try:
        yield house
    finally:
        gateway.kill()


@contextmanager
def on_redis(folder: Path, clients: list[Client], upstreams: list[str]) -> Iterator[House]:
    """Four gateways as on four machines, and one Redis, behind a switch."""
    house = House(folder, clients, upstreams)
    with ExitStack() as stack:
        house.redis = stack.enter_context(RedisServer(folder / "redis", "--appendonly", "yes"))
        house.switch = stack.enter_context(SwitchProcess(house.redis.port))
        asyncio.run(begin(house))
        for number in range(GATEWAYS):
            mine = folder / f"gateway-{number}"
            mine.mkdir()
            ledger = {"url": f"redis://127.0.0.1:{house.switch.port}/0"}
            house.gateways.append(Gateway(mine, upstreams, standby=False, ledger=ledger, **house.said()))
            stack.callback(house.gateways[-1].kill)
        yield house


async def begin(house: House, *, again: bool = False) -> None:
    """What an operator does."""
    vault = house.vault()
    await vault.begin(again=again)
    await vault.close()


# ---------------------------------------------------------------- what may go wrong


async def nothing(house: House) -> None:
    """All is well."""


async def killed(house: House) -> None:
    """One gateway, with all that it holds; it is started again, by its parent or by whoever looks after it."""
    os.kill(house.victim(), signal.SIGKILL)
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(house.revive)


async def stopped(house: House) -> None:
    """One gateway stands still for twice its lease."""
    victim = house.victim()
    os.kill(victim, signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    os.kill(victim, signal.SIGCONT)


async def disk_full(house: House) -> None:
    """One gateway cannot write a byte more."""
    victim = house.victim()
    resource.prlimit(victim, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    await asyncio.sleep(FAULT_S)
    resource.prlimit(victim, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def emptied(house: House) -> None:
    """Redis is killed and comes back without its data; after a while an operator says that it may go on."""
    assert house.redis is not None
    await asyncio.to_thread(house.redis.restart, empty=True)
    await asyncio.sleep(FAULT_S)
    await begin(house, again=True)


async def restarted(house: House) -> None:
    """Redis is killed and comes back with what its file has."""
    assert house.redis is not None
    await asyncio.to_thread(house.redis.kill)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(house.redis.start)


async def failed_over(house: House) -> None:
    """Redis is killed, and its replica takes its place."""
    assert house.redis is not None
    assert house.switch is not None
    replica = await asyncio.to_thread(RedisServer, house.folder / "replica")
    await asyncio.to_thread(replica.follow, house.redis)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(house.redis.kill)
    await asyncio.to_thread(replica.promote)
    house.switch.change("pass", to=replica.port)
    house.redis = replica  # the house's end is its end


async def unreachable(house: House) -> None:
    """Nobody listens where Redis was."""
    assert house.switch is not None
    house.switch.change("refuse")
    await asyncio.sleep(FAULT_S)
    house.switch.change("pass")


async def slow(house: House) -> None:
    """Redis takes five seconds for each answer."""
    assert house.switch is not None
    house.switch.change("slow", delay_s=5.0)
    await asyncio.sleep(FAULT_S)
    house.switch.change("pass")


RUNS: dict[str, tuple[Callable[..., Any], Fault]] = {
    "SQLite": (on_sqlite, nothing),
    "SQLite, a gateway killed": (on_sqlite, killed),
    "SQLite, a gateway stopped for twice its lease": (on_sqlite, stopped),
    "SQLite, a gateway's disk full": (on_sqlite, disk_full),
    "Redis": (on_redis, nothing),
    "Redis, a gateway killed": (on_redis, killed),
    "Redis, a gateway stopped for twice its lease": (on_redis, stopped),
    "Redis killed, restarted empty": (on_redis, emptied),
    "Redis killed, restarted from its file": (on_redis, restarted),
    "Redis killed, its replica promoted": (on_redis, failed_over),
    "Redis unreachable": (on_redis, unreachable),
    "Redis slow": (on_redis, slow),
}


# ---------------------------------------------------------------- runs


def run() -> None:
    """All runs that are left."""
    done = results().get(NAME, {})
    with start_stub() as first, start_stub() as second:
        for name, (kind, fault) in RUNS.items():
            if name in done:
                continue
            folder = STATE / f"gateways-{time.time_ns()}"
            folder.mkdir(parents=True)
            done[name] = one = crowded(folder, kind, fault, [first, second], random.Random(f"{SEED} {name}"))
            shutil.rmtree(folder)
            keep(NAME, done)
            say(f"{name}: {one['used']:.1%} used, {one['asked']} requests, wrong: {one['wrong'] or 'nothing'}")


def crowded(
    folder: Path, kind: Callable[..., Any], fault: Fault, stubs: list[StubProcess], rng: random.Random
) -> dict[str, Any]:
    """One run: what was asked, delivered and charged, and what was wrong."""
    clients = [Client(number, rng) for number in range(ORGS * KEYS)]
    before_tokens = computed(stubs)
    with kind(folder, clients, [stub.url for stub in stubs]) as house:
        before = redis_commands(house)
        crowd = asyncio.run(under_load(house, clients, fault, rng))
        commands = redis_commands(house) - before
        wrong = list(crowd.stuck)
        house.revive()
        wrong += house.stop()
        wrong += asyncio.run(books_wrong(house, clients))
        one = {
            "on": provenance(), "asked": crowd.asked, "refused": crowd.refused, "wrong": wrong,
            "delivered": sum(client.received for client in clients), "used": used(house),
            "charged": sum(charges(house, Unit.TOKENS)[f"key:{client.key_id}"] for client in clients),
            "overrun": computed(stubs) - before_tokens - sum(client.output for client in clients),
            "commands": commands,
        }  # fmt: skip
        if house.redis is not None:
            house.redis.kill()
    return one


def computed(stubs: list[StubProcess]) -> int:
    """Output tokens that the servers have sent, to whomever."""
    return sum(stub.stats()["tokens_sent_total"] for stub in stubs)


def redis_commands(house: House) -> int:
    """Scripts that gateways had it run; what these do there is no command of theirs."""
    if house.redis is None:
        return 0
    calls = house.redis.info("commandstats")
    return sum(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def under_load(house: House, clients: list[Client], fault: Fault, rng: random.Random) -> Patient:
    """Let the crowd spend all there is, with the fault in its midst."""
    crowd = Patient(0, list(clients), rng)
    crowd.ports = house.ports
    running = asyncio.create_task(crowd.run(CLIENTS, arrive_s=1.0))
    await asyncio.sleep(FAULT_AFTER_S)
    await fault(house)
    ends_at = time.monotonic() + RUN_S_MAX
    while (left := crowd.left()) and time.monotonic() < ends_at:
        crowd.accounts = left
        await asyncio.sleep(0.25)
    crowd.over.set()
    await running
    return crowd


def charges(house: House, unit: Unit) -> Counter[str]:
    """What all gateways' ledgers have charged, by scope."""
    found: Counter[str] = Counter()
    for one in house.gateways:
        found.update({row.scope: row.spent for row in read_balances(one.data) if row.unit == unit})
    return found


def used(house: House) -> float:
    """The least part of an org's budget that was used."""
    tokens, money = charges(house, Unit.TOKENS), charges(house, Unit.MONEY)
    parts = [tokens[f"org:org-{org}"] / TOKENS if org % 2 else money[f"org:org-{org}"] / MONEY for org in range(ORGS)]
    return min(parts)


async def books_wrong(house: House, clients: list[Client]) -> list[str]:
    """What is wrong with the books of gateways that have all ended."""
    found = []
    tokens, money = charges(house, Unit.TOKENS), charges(house, Unit.MONEY)
    for one in clients:
        spent = tokens[f"key:{one.key_id}"]
        if not one.received <= spent <= one.budget:
            found.append(f"{one.key_id} was delivered {one.received} and charged {spent} of {one.budget}")
    for org in range(ORGS):
        mine, name = [one for one in clients if one.org == f"org-{org}"], f"org:org-{org}"
        delivered, cost = sum(one.received for one in mine), sum(one.cost for one in mine)
        if org % 2 and not delivered <= tokens[name] <= TOKENS:
            found.append(f"{name} was delivered {delivered} and charged {tokens[name]} of {TOKENS} tokens")
        if not cost <= money[name] <= (AMPLE if org % 2 else MONEY):
            found.append(f"{name} was delivered {cost} and charged {money[name]} of {MONEY} micro-dollars")
    for path in house.data:
        if ledger_file(path).exists():
            found += audit(path)
            spent_here = {Place(*row[:3]): row.spent for row in read_balances(path) if row.spent}
            found += [f"{path.name}: {one}" for one in differences(replay_all(journals(path)).charged, spent_here)]
    return found + await vault_wrong(house, tokens, money)


async def vault_wrong(house: House, tokens: Counter[str], money: Counter[str]) -> list[str]:
    """Whether the vault says what the ledgers say, and that nobody has rights any more."""
    vault = house.vault()
    try:
        stands: list[Standing] = [one for tag in await vault.tags() for one in await vault.standings(tag)]
    finally:
        await vault.close()
    known = {Unit.TOKENS: tokens, Unit.MONEY: money}
    found = [f"{one.place.scope}: {one.leased} leased, {one.lost} lost" for one in stands if one.leased or one.lost]
    for one in stands:
        said = known[Unit(one.place.unit)][one.place.scope]
        if one.spent != said:
            found.append(f"{one.place.scope}: the vault says {one.spent} {one.place.unit} spent, the ledgers {said}")
    return found


# ---------------------------------------------------------------- the report


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    runs = done.get(NAME)
    if not runs:
        return {}
    calm = [runs[name] for name in ("SQLite", "Redis") if name in runs]
    return {
        f"{len(RUNS)} runs, each of {GATEWAYS} gateways under {CLIENTS} clients": len(runs) == len(RUNS),
        "in each: no token and no micro-dollar delivered beyond a budget, or charged beyond it; none delivered and not "
        "charged; every request ended in time; nothing held or leased at its end; every journal equal to its ledger, "
        "and the vault to their sum": not any(one["wrong"] for one in runs.values()),
        f"without a fault at least {USED_LEAST:.0%} of each org's budget is used": all(
            one["used"] >= USED_LEAST for one in calm
        ),
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    runs = done.get(NAME)
    if not runs:
        return []
    said = [
        f"## {GATEWAYS} gateways, {CLIENTS} clients, {ORGS} orgs with {KEYS} keys each",
        "",
        f"Two orgs have {TOKENS:,} tokens, two {MONEY:,} micro-dollars; half of the keys have 150 to 4,000 tokens. "
        "Clients ask until all is spent. «Used» is of the org that used least of its budget. «Charged and not "
        "delivered» is what was held when something broke. «Overrun» is what servers computed and nobody was given.",
        "",
        "| run | requests | refused | delivered | charged and not delivered | used | overrun | Redis commands |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in runs.items():
        commands = f"{one['commands']:,}" if one["commands"] > 0 else "–"
        said.append(
            f"| {name} | {one['asked']:,} | {one['refused']:,} | {one['delivered']:,} | "
            f"{one['charged'] - one['delivered']:,} | {one['used']:.2%} | {one['overrun']:,} | {commands} |"
        )
    return [*said, "", *(f"- {name}: {fault}" for name, one in runs.items() for fault in one["wrong"])]
