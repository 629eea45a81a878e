"""Planned moves: a server is emptied, so that it may be stopped, and no client notices.

What moves a stream is what a dead server would: its leg is closed, and it goes on elsewhere. But nobody has failed,
what it needs is there before it comes (see gateway/move.py), and a stream that could not go on exactly is left to end
where it is. Sessions of which nothing runs go too: their next turns go elsewhere.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import structlog

from gateway.fleet.heirs import strangers
from gateway.fleet.inspector import Inspector
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from gateway.homes import PLANNED, Homes
from gateway.move import Move, bonds, found, target
from gateway.slices import in_turns
from gateway.stream.leg import Leg
from gateway.stream.part import Stream
from gateway.stream.upstream import Upstream
from gateway.warming import Warmer
from guards.continuing import Continues

log = structlog.get_logger()

Heirs = list[Continues | None]  # what those continue by replay that a stream could go to

AT_ONCE = 4  # streams that are on their way: each is computed anew where it goes, and slows others there
AT_ONCE_MAX = 64
LOOK_S = 0.05  # between looks at what still runs there
SESSIONS_S = 1.0  # between looks at the sessions that live there: there may be tens of thousands
SESSIONS_MAX = 1024  # that move in one look, each a fact and a line; whose next turn comes before goes elsewhere anyhow
MOVE_S_MAX = 10.0  # then the next one may begin, whatever keeps this one: a client that does not read, perhaps
PAUSES_MAX = 4096  # that are remembered of one drain
WHY = "its server is drained"
PLAIN = "plain answers, which would be computed again from their beginning"


class Hears(Protocol):
    """Told of what becomes of it."""

    def leaving(self, replica: Replica) -> None:
        """An operator drains it, or not any more."""

    def emptied(self, replica: Replica, moved: int, took_s: float) -> None:
        """Nothing runs there any more."""

    def moved(self, why: str = "drain") -> None:
        """A stream that was moved goes on elsewhere."""


@dataclass
class Drain:
    """One replica that is emptied. Times in seconds, by the gateway's clock.

    moved: streams that go on elsewhere, and sessions: those that live elsewhere now. pauses_s: that clients saw.
    left: how many are left to end there, by the reason why. stay: those of them that run, each with that reason, and
    with what those could continue that it could have gone to: where they can do more, it may go after all.
    alone: models of streams that no other replica can take now. emptied_s: when nothing ran there any more.
    evacuated_s: when the sessions there were last looked at.
    """

    replica: Replica
    at_once: int
    begun_s: float
    moved: int = 0
    sessions: int = 0
    pauses_s: list[float] = field(default_factory=list)
    moving: list[Move] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    stay: "dict[Stream, tuple[str, Heirs]]" = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    emptied_s: float | None = None
    evacuated_s: float = -inf
    task: "asyncio.Task[None] | None" = None
    begun: "set[asyncio.Task[None]]" = field(default_factory=set)  # moves

    def cancel(self) -> None:
        """Drain no more."""
        for task in (self.task, *self.begun):
            if task is not None:
                task.cancel()


class Moves:
    """Drains replicas, and lets them have requests again. Both may be said again, to no effect.

    homes: of sessions. warmer: has servers load pages ahead; None where nobody does.
    changed: told which replicas are drained, each with its at_once, when that changes.
    """

    def __init__(
        self,
        fleet: Fleet,
        inspector: Inspector,
        upstream: Upstream,
        listener: Hears,
        clock: Callable[[], float],
        *,
        homes: Homes | None = None,
        warmer: Warmer | None = None,
        changed: Callable[[dict[str, int]], None] = lambda drained: None,
    ) -> None:
        self._fleet, self._inspector, self._upstream = fleet, inspector, upstream
        self._listener, self._clock, self._homes, self._warmer = listener, clock, homes, warmer
        self._changed = changed
        self._drains: dict[str, Drain] = {}

    def drain(self, name: str, at_once: int = AT_ONCE) -> dict[str, Any]:
        """Begin to empty a replica, or say how many streams may be on their way; answer as `told` does.

        Raises KeyError where there is none of that name.
        """
        replica, known = self._fleet.named(name), self._drains.get(name)
        if known is not None:
            known.at_once = at_once
            self._tell()
            return self.told(name)
        drain = self._drains[name] = Drain(replica, at_once, self._clock())
        replica.leaving = True
        self._listener.leaving(replica)
        drain.task = asyncio.create_task(self._run(drain))
        self._tell()
        return self.told(name)

    def undrain(self, name: str) -> bool:
        """Let a replica have requests again, whyever it was drained; whether it was. Raises KeyError."""
        replica, drain = self._fleet.named(name), self._drains.pop(name, None)
        if drain is not None:
            drain.cancel()
            replica.leaving = False
            self._listener.leaving(replica)
            self._tell()
        return self._inspector.undrain(name) or drain is not None

    def restore(self, drained: dict[str, int]) -> None:
        """Drain what was drained before, as far as it is still there."""
        known = {one.name for one in self._fleet.all()}
        for name, at_once in drained.items():
            if name in known:
                self.drain(name, max(1, min(at_once, AT_ONCE_MAX)))

    def told(self, name: str) -> dict[str, Any]:
        """How far it is, for JSON. Raises KeyError.

        running: requests that still have a part there. took_s: until it was empty, or until now.
        """
        replica, drain = self._fleet.named(name), self._drains.get(name)
        if drain is None:
            return {"replica": name, "draining": False, "running": replica.load}
        until_s = self._clock() if drain.emptied_s is None else drain.emptied_s
        return {
            "replica": name,
            "draining": True,
            "at_once": drain.at_once,
            "moved": drain.moved,
            "sessions": drain.sessions,
            "pause_ms": in_ms(drain.pauses_s),
            "moving": len(drain.moving),
            "left": dict(drain.left),
            "alone": sorted(drain.alone),
            "running": replica.load,
            "empty": drain.emptied_s is not None and not replica.load,
            "took_s": round(until_s - drain.begun_s, 3),
        }

    def close(self) -> None:
        """Drain no more."""
        for drain in self._drains.values():
            drain.cancel()

    def _tell(self) -> None:
        self._changed({name: drain.at_once for name, drain in self._drains.items()})

    async def _run(self, drain: Drain) -> None:
        """Go on until it is undrained: where no other replica is up, requests still come."""
        while True:
            try:
                await self._step(drain)
            except Exception as error:  # a bug must not be the end of it
                log.error("drain.fault", replica=drain.replica.name, exc_info=error)
            await asyncio.sleep(LOOK_S)

    async def _step(self, drain: Drain) -> None:
        """Look once: who has arrived, who may go next, and whether all have gone."""
        self._arrivals(drain)
        alone = set()
        heirs: dict[tuple[str, frozenset[frozenset[str]]], Heirs] = {}  # thousands of streams may be left there
        there = found(self._upstream.streams(drain.replica.name))
        drain.stay = {stream: why for stream, why in drain.stay.items() if stream in there}
        for stream, legs in there.items():
            if len(drain.moving) >= drain.at_once:
                break
            if any(move.stream is stream for move in drain.moving):
                continue
            model = stream.call.model
            if (of := (model, bonds(legs))) not in heirs:
                heirs[of] = self._heirs(drain.replica, *of)
            if not heirs[of]:
                alone.add(model)
            elif stream in drain.stay and drain.stay[stream][1] == heirs[of]:
                continue
            elif (why := await stream.stays(heirs[of])) is not None:
                _stay(drain, stream, why, heirs[of])
            elif stream.open and not all(leg.over for leg in legs):
                self._begin(drain, Move(stream, self._clock()), legs)
        drain.alone = alone
        await self._evacuate(drain)
        self._look_whether_empty(drain)

    def _heirs(self, replica: Replica, model: str, bound: frozenset[frozenset[str]]) -> Heirs:
        """What those continue by replay that its streams could go to: they are like it. None where none is good.

        bound: to which fingerprints the streams are.
        """
        up, now_s = self._fleet.up(model), self._fleet.now_s()
        unlike = strangers(up, model, [replica.origin(model, now_s)], now_s)
        avoid = frozenset((replica.name, *unlike, *(one.name for one in up if not one.takes(bound, now_s))))
        if self._fleet.second(model, avoid) is None:
            return []
        return [self._fleet.continues(one.name) for one in up if one.name not in avoid]

    def _begin(self, drain: Drain, move: Move, legs: list[Leg]) -> None:
        """Send one on its way: at once where nothing can be loaded ahead."""
        _goes(drain, move.stream)
        drain.moving.append(move)
        to = target(self._fleet, drain.replica, move.stream.call.model) if self._warmer is not None else None
        if to is None or self._warmer is None:
            return move.cut(legs, WHY)
        task = asyncio.create_task(self._move(drain, move, self._warmer, to))
        drain.begun.add(task)
        return task.add_done_callback(drain.begun.discard)

    async def _move(self, drain: Drain, move: Move, warmer: Warmer, to: str) -> None:
        """Pre-copy and cut; what has come to stay meanwhile does, and what was lost has gone."""
        try:
            await move.precopy(warmer, to)
            legs = found(self._upstream.streams(drain.replica.name)).get(move.stream, [])
            heirs = self._heirs(drain.replica, move.stream.call.model, bonds(legs))
            if (why := await move.stream.stays(heirs)) is not None:
                _stay(drain, move.stream, why, heirs)
            elif move.stream.open and legs and heirs:
                return move.cut(legs, WHY)
        except Exception as error:
            log.error("drain.fault", replica=drain.replica.name, exc_info=error)
        drain.moving = [one for one in drain.moving if one is not move]
        return None

    async def _evacuate(self, drain: Drain) -> None:
        """Have the sessions there of which nothing runs live elsewhere, as far as somebody can take them."""
        homes, now_s = self._homes, self._clock()
        if homes is None or now_s < drain.evacuated_s + SESSIONS_S:
            return
        drain.evacuated_s, until = now_s, drain.sessions + SESSIONS_MAX
        async for lodger in in_turns(homes):
            if drain.sessions >= until:
                break
            if lodger.replica == drain.replica.name and not lodger.running and (to := homes.heir(lodger)) is not None:
                homes.settle(lodger, self._fleet.named(to), PLANNED)
                drain.sessions += 1

    def _arrivals(self, drain: Drain) -> None:
        now_s, still = self._clock(), []
        for move in drain.moving:
            if not move.arrived and now_s - move.begun_s < MOVE_S_MAX:
                still.append(move)
            elif move.well:
                drain.moved += 1
                drain.pauses_s += move.pauses_s[: PAUSES_MAX - len(drain.pauses_s)]
                self._listener.moved()
        drain.moving = still

    def _look_whether_empty(self, drain: Drain) -> None:
        plain = len(self._upstream.plain(drain.replica.name))
        if plain > drain.left.get(PLAIN, 0):
            drain.left[PLAIN] = plain
        if drain.replica.load or drain.moving:
            drain.emptied_s = None
        elif drain.emptied_s is None:
            drain.emptied_s = self._clock()
            self._listener.emptied(drain.replica, drain.moved, drain.emptied_s - drain.begun_s)


def in_ms(pauses_s: list[float]) -> dict[str, float] | None:
    """Median, 99th percentile and the longest, in milliseconds; None where there is none."""
    if not pauses_s:
        return None
    ms = sorted(1e3 * one for one in pauses_s)
    at = {"p50": len(ms) // 2, "p99": min(len(ms) - 1, int(0.99 * len(ms))), "most": len(ms) - 1}
    return {name: round(ms[place], 1) for name, place in at.items()}


def _stay(drain: Drain, stream: Stream, why: str, heirs: Heirs) -> None:
    _goes(drain, stream)
    drain.left[why] = drain.left.get(why, 0) + 1
    drain.stay[stream] = why, heirs


def _goes(drain: Drain, stream: Stream) -> None:
    """It was left there, perhaps, and is not any more."""
    if (left := drain.stay.pop(stream, None)) is not None:
        drain.left[left[0]] -= 1
        if not drain.left[left[0]]:
            del drain.left[left[0]]
