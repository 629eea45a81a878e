"""One world: servers, a network, a disk, clients, and a gateway that may die and be started anew."""

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec

from gateway.books.ledger.contract import Place
from gateway.books.outbox import Outbox
from gateway.books.replay import Fact
from tests.sim import invariants
from tests.sim.books import Disk, Facts, SimLedger, SimWriter
from tests.sim.client import Client, key_place, tenant
from tests.sim.gateway import Gateway, SimMetrics, host
from tests.sim.loop import SimLoop, Stuck
from tests.sim.network import Network
from tests.sim.plan import Fault, Outage, Plan
from tests.sim.server import Server

LIFE_S_MAX = 100.0  # of a world, beyond the time that one request may take
SETTLE_S_MAX = 60.0  # for settlements that are tried again, once the disk is well
CONNECT_S = 1.0  # for connections that nobody waits for any more
REAP_MAX = 50  # turns in which the tasks of a dead process must be gone


class Broken(Exception):
    """An invariant does not hold."""


class World:
    """Runs a plan. Raises Broken at the first step after which an invariant does not hold.

    trace: what happened, if it is wanted.
    """

    def __init__(self, plan: Plan, disk: Disk, *, traced: bool = False) -> None:
        self.plan, self.disk = plan, disk
        self.trace: list[str] | None = [] if traced else None
        self.loop = SimLoop()
        self.rng = Random(plan.seed)
        self.network = Network(self.loop, self.rng, plan.latency_s, plan.torn)
        self.tenants = [tenant(n, tokens, plan.shared) for n, tokens in enumerate(plan.budgets)]
        self.clients = {f"r{n}": Client(self, n, asking) for n, asking in enumerate(plan.asks)}
        oracles = {name: client.oracle for name, client in self.clients.items()}
        self.servers = [
            Server(f"s{n}", pace, self.loop, self.rng, oracles, self.note) for n, pace in enumerate(plan.servers)
        ]
        self.network.hosts = {host(n): server for n, server in enumerate(self.servers)}
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.active: dict[str, Client] = {}
        self.gateway: Gateway
        self.writer: SimWriter
        self.journal: Facts
        self.metrics: SimMetrics
        self.ejected = 0
        self.on_step: Callable[[World], None] = lambda world: None
        self._violations: list[str] = []
        self._dying = self._over = self._stopping = self._resting = False
        self._waiting = len(self.clients)
        self._all_ended = asyncio.Event()
        self._works: list[asyncio.Task[None]] = []

    def run(self) -> None:
        """Live through it."""
        self.disk.wipe()
        self.loop.set_exception_handler(self._unhandled)
        self.loop.on_step = self._step
        try:
            self.loop.run_until_complete(self._play())
            self._step()
        except Stuck as stuck:
            raise Broken(str(stuck)) from None
        finally:
            self._over = self.writer.dead = self.journal.dead = True
            self.loop.on_step = lambda: None
            self.loop.steps = 0
            self.loop.run_until_complete(self._reap("_reap"))
            self.loop.close()

    # -- for everybody in it

    def note(self, what: str) -> None:
        """Tell what happens."""
        if self.trace is not None:
            self.trace.append(f"{self.loop.time():10.6f}  {what}")

    def broken(self, what: str) -> None:
        """An invariant does not hold; the world ends after this step."""
        if not (self._dying or self._over):
            self.note(f"BROKEN: {what}")
            self._violations.append(what)

    def ended(self, client: Client) -> None:
        """A client has its answer, or will not have it."""
        self.note(f"{client.name} ends: {client.outcome}")
        self.active.pop(client.name, None)
        self._waiting -= 1
        if self._waiting == 0 and not self._dying:
            self._all_ended.set()

    def budget(self, at: Place) -> int:
        """The limit of an account."""
        lines = (line for one in self.tenants for line in one.lines)
        return next(limit.amount for scope, limit in lines if (scope, limit.unit) == at[:2])

    def settled(self, client: Client) -> list[dict[str, Any]]:
        """What the journal says of a client's end."""
        ends = (fact for kind, fact in self.facts if kind == "request.settled")
        return [fact for fact in ends if fact["request_id"] == client.name]

    # ---------------------------------------------------------------- its course

    async def _play(self) -> None:
        plan, later = self.plan, self.loop.later
        self._start()
        for client in self.clients.values():
            later(client.plan.at_s, self._arrive, client)
        for fault in plan.faults:
            server = self.servers[fault.server]
            if fault.at_s is not None:
                later(fault.at_s, self._harm, server, fault)
            else:
                server.orders.append(fault)
        for server in self.servers:
            server.orders.sort(key=lambda fault: fault.after or 0)
        for outage in plan.outages:
            later(outage.at_s, self._break, outage)
        for crash_s in plan.crashes_s:
            later(crash_s, self._crash)
        if plan.stop_s is not None:
            later(plan.stop_s, self._stop)
        later(plan.total_s + LIFE_S_MAX, self._all_ended.set)
        await self._all_ended.wait()
        await asyncio.sleep(plan.linger_s / 2)
        await self._rest()

    def _start(self) -> None:
        """A gateway's process begins."""
        self.metrics = SimMetrics()
        self.metrics.on_verdict = self._verdict
        self.writer = SimWriter(self.disk, self.loop, self._commit_s, self._committed)
        self.journal = Facts(self.loop, lambda: 5 * self._commit_s(), self._fact)
        ledger = SimLedger(self.writer, self.disk.outbox())
        self.gateway = Gateway(self.plan, self.loop, ledger, self.journal, self.metrics)
        outbox = Outbox(ledger, self.gateway.records.journal)
        outbox.begin(
            lambda since_s: [msgspec.convert({"seq": 0, "at": 0.0, "kind": k} | f, Fact) for k, f in self.facts]
        )
        ledger.on_batch(outbox.batch)
        self.gateway.records.on_open = self._opened
        works = self.gateway.fleet.run(), self.gateway.turns.run()
        self._works = [self.loop.create_task(work) for work in works]

    def _arrive(self, client: Client) -> None:
        if self._stopping:
            client.turned_away = True
            return self.ended(client)
        self.note(f"{client.name} asks for {client.call.body}")
        self.active[client.name] = client
        return client.arrive(self.gateway.flow)

    def _harm(self, server: Server, fault: Fault) -> None:
        if not self._resting:
            server.obey(fault, None)

    def _break(self, outage: Outage) -> None:
        if self._resting:
            return
        self.note(f"the disk breaks for {outage.for_s}")
        self.disk.broken = "commit" if outage.at_commit else "file"
        self.loop.later(outage.for_s, self._mend)

    def _mend(self) -> None:
        self.disk.broken = None

    def _stop(self) -> None:
        """SIGTERM, and no time for draining."""
        self.note("the gateway is told to stop")
        self._stopping = True
        self.gateway.deadlines.stop()

    def _crash(self) -> None:
        """The process is killed: what it had in memory is gone, what was committed is not."""
        if self._waiting == 0 or self._dying or self._stopping:
            return
        self.note("the gateway dies")
        self._dying = self.writer.dead = self.journal.dead = True
        for client in list(self.active.values()):
            client.dead = True
            self.ended(client)
        self.loop.create_task(self._restart())

    async def _restart(self) -> None:
        await self._reap("_play", "_restart")
        for timer in self.loop.timers():
            timer.cancel()
        for link in list(self.network.links):
            link.abort()
        self._mend()
        self._dying = False
        self.note(f"the gateway is back, this was held: {self.disk.recover(self.loop.time())}")
        for client in self.clients.values():
            if client.held is not None and client.charged is None:
                client.charged, client.recovered = client.held, True
                client.settled = client.held[key_place(client)]
        self._start()
        if self._waiting == 0:
            self._all_ended.set()

    async def _reap(self, *spared: str) -> None:
        """End every task but the world's own, by age; a killed process has none."""
        for _ in range(REAP_MAX):
            tasks = self._tasks(*spared)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)

    @staticmethod
    def _tasks(*spared: str) -> list[asyncio.Task[Any]]:
        tasks = [task for task in asyncio.all_tasks() if task.get_coro().__name__ not in spared]  # type: ignore[union-attr]
        return sorted(tasks, key=lambda task: int(task.get_name().rpartition("-")[2]))

    async def _rest(self) -> None:
        """All is well again, everybody goes home: nothing may be left."""
        self._resting = True
        self._mend()
        for server in self.servers:
            server.orders.clear()
            server.heal()
        if self.plan.linger_s:
            await asyncio.sleep(self.plan.linger_s / 2)
            self._judge(invariants.at_ease(self))
        for work in self._works:
            work.cancel()
        self.gateway.fleet.close()
        await asyncio.sleep(CONNECT_S)
        until_s = self.loop.time() + SETTLE_S_MAX
        while self.writer.holds() and self.loop.time() < until_s:  # noqa: ASYNC110 - it is virtual
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * self.plan.commit_s)  # for the last answers
        self.journal.flush()
        self._judge(invariants.at_rest(self))
        for client in self.clients.values():
            self._judge(invariants.at_end(self, client))
        self._judge(invariants.at_calm(self))
        await self.gateway.upstream.close()
        await asyncio.sleep(self.plan.total_s)
        left = [*map(repr, self._tasks("_play")), *map(repr, self.loop.timers()), *map(repr, self.network.links)]
        if left:
            self.broken(f"left at the end: {left}")

    # ---------------------------------------------------------------- what is watched

    def _step(self) -> None:
        self.on_step(self)
        if not self._violations and not self._dying:
            wrong = invariants.after_step(self.active.values(), self.gateway.replicas()) if self.active else None
            if wrong is not None:
                self.broken(wrong)
        if self._violations:
            raise Broken(self._violations[0])

    def _judge(self, found: Iterable[str]) -> None:
        for what in found:
            self.broken(what)

    def _committed(self, batch: list[Any], answers: list[Any]) -> None:
        if self.trace is not None:
            self.note(f"committed {[one.step for one in batch]}: {answers}")
        self._judge(invariants.after_commit(self, batch, answers))

    def _verdict(self, name: str, up: bool, hung: bool) -> None:
        self.note(f"{name} is {'up' if up else 'hung' if hung else 'down'}")
        self.ejected += hung
        self._judge(invariants.at_verdict(self, name, hung))

    def _fact(self, kind: str, fields: dict[str, Any]) -> None:
        self.note(f"{kind} {fields}")
        self.facts.append((kind, fields))

    def _opened(self, call: Any, record: Any) -> None:
        self.clients[call.request_id].record = record

    def _commit_s(self) -> float:
        return self.plan.commit_s * (0.5 + self.rng.random())

    def _unhandled(self, loop: Any, context: dict[str, Any]) -> None:
        self.broken(f"unhandled: {context['message']} {context.get('exception')!r}")
