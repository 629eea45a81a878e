"""A stage for one request: the real flow, fleet and relay over legs that a test plays by hand."""

import asyncio
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from gateway.books.tenants import OPEN
from gateway.fleet.listener import Listener
from gateway.fleet.page_status import Pages, Plugin, read
from gateway.fleet.pulse import Pulse, Watch
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.flow import Flow
from gateway.stream.call import Call
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.relay import Relay
from gateway.stream.seams import Ask, Terms
from gateway.turns import Turns
from guards.continuing import Way
from guards.health import Health
from guards.place import Rank
from loadtests.stub_server import PAGES
from tests.gateway.stream.fakes import Engine, FakeLease, FakeSink, Seen, terms_for

UP = Health(up=True, why="answers")
HUNG = LegEnd(Cause.SILENT)


class Leg:
    """A leg that brings what it is told to, and ends when it is told to, or closed."""

    def __init__(self, replica: str, ask: Ask, raws: list[bytes], receiver: Any, watch: Watch) -> None:
        self.replica, self.ask, self.raws, self.receiver, self.watch = replica, ask, raws, receiver, watch
        self.ended: asyncio.Future[LegEnd] = asyncio.get_running_loop().create_future()
        self.on_end: Callable[[], None] | None = None
        self.paused = False

    @property
    def over(self) -> bool:
        return self.ended.done()

    @property
    def open(self) -> bool:
        return not self.ended.done()

    @property
    def cause(self) -> Cause:
        """How it ended."""
        return self.ended.result().cause

    def bring(self, events: int | None = None) -> None:
        """Bring the next events; all that are left by default."""
        count = len(self.raws) if events is None else events
        for _ in range(count):
            if self.open and self.raws and not self.paused:
                self.receiver.events([self.raws.pop(0)])

    def finish(self) -> None:
        """Bring all that is left, and end well."""
        self.bring()
        self.end(LegEnd(Cause.DONE, "the stream ended without a finish_reason", 200))

    def end(self, end: LegEnd) -> None:
        if self.open:
            self.watch.over()
            self.ended.set_result(end)
            if self.on_end is not None:
                self.on_end()

    def close(self) -> None:
        self.end(LegEnd(Cause.CLOSED))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def progress(self) -> None:
        self.watch.token(0.01)

    def fault(self, error: Exception) -> None:
        raise error


class Record:
    """Notes what happened."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, Cause, bool]] = []
        self.hedges: list[str] = []
        self.wins: list[str] = []
        self.same: list[bool | None] = []  # of each time that a replica was picked
        self.ways: list[Way | None] = []

    def leg_opened(self, name: str, same_model: bool | None = None, way: Way | None = None) -> float:
        self.same.append(same_model)
        self.ways.append(way)
        return 0.0

    def leg_ended(self, name: str, end: LegEnd, lost: bool) -> None:
        self.ends.append((name, end.cause, lost))

    def hedged(self, name: str, way: Way | None = None) -> None:
        self.hedges.append(name)

    def hedge_won(self, name: str) -> float:
        self.wins.append(name)
        return 0.0


class Sink(FakeSink):
    """Notes who answers."""

    replica = ""

    def from_replica(self, name: str, overhead_s: float) -> None:
        self.replica = name


class Stage:
    """One streamed request over replicas "a", "b", ...; `legs` are those opened so far, in order."""

    def __init__(
        self,
        call: Call,
        engine: Engine,
        *,
        replicas: str = "ab",
        care: Care | None = None,
        terms: Terms | None = None,
        lease: FakeLease | None = None,
        per_chunk: int = 1,
        continues: str = "",
    ) -> None:
        """continues: the replicas that continue streams by replay, seeded ones too."""
        self.call, self.engine, self.per_chunk = call, engine, per_chunk
        self.legs: list[Leg] = []
        self.record, self.sink, self.lease = Record(), Sink(), lease or FakeLease()
        self.now_s = 100.0
        servers = [Replica(name, standby=name != "a", model="tiny", health=UP, pulse=Pulse()) for name in replicas]
        self.fleet = Fleet(servers, self._ask, Listener(), care or Care(60.0, 1.0), lambda: self.now_s)
        for one in servers:
            if one.name in continues:
                one.pages = continuing()
        targets: Any = {name: name for name in replicas}
        self.relay = Relay(call, self.sink, self.lease, terms or terms_for(call), lambda: self.now_s)
        nothing: Any = None
        upstream: Any = self
        self.flow = Flow(nothing, nothing, nothing, self.fleet, upstream, targets, nothing, 60.0, nothing)
        record: Any = self.record
        quote: Any = SimpleNamespace(terms=self.relay.terms)
        turn = Turns(self.fleet, {}, Rank("default"), lambda: self.now_s).one(call, OPEN, self.sink, quote)
        self._serving = asyncio.ensure_future(self.flow._legs(self.relay, self.sink, record, (), turn))

    @property
    def seen(self) -> Seen:
        return Seen.of(self.sink.data)

    def open(self, target: Any, path: str, body: bytes, receiver: Any, headers: Any, watch: Watch) -> Leg:
        """Stand in for the upstream client."""
        ask = Ask(path, body, receiver.choices)
        self.legs.append(Leg(target, ask, self.engine.events(ask, self.per_chunk), receiver, watch))
        return self.legs[-1]

    async def turn(self) -> None:
        """Let the flow do what it can do now."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def opened(self, number: int) -> Leg:
        """Wait for a leg to be opened."""
        await self.turn()
        assert len(self.legs) > number, "no such leg was opened"
        return self.legs[number]

    async def silent(self, *legs: Leg) -> None:
        """Have legs be silent for longer than is usual, and let the flow see to it."""
        for leg in legs:
            leg.watch.silence()
        await self.turn()

    async def end(self) -> None:
        """Wait for the stream's end, then check what holds after every end."""
        async with asyncio.timeout(2):
            await self._serving
        await self.relay.finish()
        self.relay.close()
        self.fleet.close()
        meter = self.lease.meter
        assert (meter.input, meter.spent) == (self.relay.prompt_tokens, self.relay.completion_tokens)
        assert meter.spent <= meter.leased
        assert not any(leg.open for leg in self.legs)
        for replica in self.fleet.all():
            assert (replica.load, replica.pulse.streams, replica.pulse.silent) == (0, 0, 0)

    async def _ask(self, name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        await asyncio.sleep(3600)  # no canary is answered while a test plays
        return HUNG


def continuing(at_s: float = 100.0, **more: Any) -> Pages:
    """What is known of a replica that said then that it continues streams by replay."""
    said = PAGES | {"continues": {"protocol": 1, "seeds": True, "refused": []}} | more
    return Pages(plugin=Plugin.TOLD, status=read(json.dumps(said).encode(), at_s), fresh_s=15.0)


def causes(legs: Sequence[Leg]) -> list[Cause]:
    """How legs ended, in order."""
    return [leg.cause for leg in legs]
