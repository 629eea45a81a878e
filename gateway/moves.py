"""Planned moves: a server is emptied, so that it may be stopped, and no client notices.

What moves a stream is what a dead server would: its leg is closed, and it goes on elsewhere. But nobody has failed, and
a stream that could not go on exactly is left to end where it is.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import structlog

from gateway.fleet.heirs import strangers
from gateway.fleet.inspector import Inspector
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from gateway.stream.leg import Leg
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.part import Part, Stream
from gateway.stream.upstream import Upstream
from guards.continuing import Continues
from guards.refusal import CUTS, Ending

log = structlog.get_logger()

AT_ONCE = 4  # streams that are on their way: each is computed anew where it goes, and slows others there
AT_ONCE_MAX = 64
LOOK_S = 0.05  # between looks at what still runs there
MOVE_S_MAX = 10.0  # then the next one may begin, whatever keeps this one: a client that does not read, perhaps
GOES_ON = (None, Ending.FINISHED, *CUTS)  # or came to the end that it would have had here, too
PLAIN = "plain answers, which would be computed again from their beginning"


class Hears(Protocol):
    """Told of what becomes of it."""

    def leaving(self, replica: Replica) -> None:
        """An operator drains it, or not any more."""

    def emptied(self, replica: Replica, moved: int, took_s: float) -> None:
        """Nothing runs there any more."""

    def moved(self) -> None:
        """A stream that was moved goes on elsewhere."""


class Move(NamedTuple):
    """A stream on its way. tokens: it had by then."""

    stream: Stream
    tokens: int
    begun_s: float

    @property
    def arrived(self) -> bool:
        """Whether it goes on, or has ended."""
        return not self.stream.open or self.stream.completion_tokens > self.tokens


@dataclass
class Drain:
    """One replica that is emptied. Times in seconds, by the gateway's clock.

    moved: streams that go on elsewhere. left: how many are left to end there, by the reason why.
    alone: models of streams that no other replica can take now. emptied_s: when nothing ran there any more.
    """

    replica: Replica
    at_once: int
    begun_s: float
    moved: int = 0
    moving: list[Move] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    emptied_s: float | None = None
    task: "asyncio.Task[None] | None" = None


class Moves:
    """Drains replicas, and lets them have requests again. Both may be said again, to no effect."""

    def __init__(
        self, fleet: Fleet, inspector: Inspector, upstream: Upstream, listener: Hears, clock: Callable[[], float]
    ) -> None:
        self._fleet, self._inspector, self._upstream = fleet, inspector, upstream
        self._listener, self._clock = listener, clock
        self._drains: dict[str, Drain] = {}

    def drain(self, name: str, at_once: int = AT_ONCE) -> dict[str, Any]:
        """Begin to empty a replica, or say how many streams may be on their way; answer as `told` does.

        Raises KeyError where there is none of that name.
        """
        replica, known = self._fleet.named(name), self._drains.get(name)
        if known is not None:
            known.at_once = at_once
            return self.told(name)
        drain = self._drains[name] = Drain(replica, at_once, self._clock())
        replica.leaving = True
        self._listener.leaving(replica)
        drain.task = asyncio.create_task(self._run(drain))
        return self.told(name)

    def undrain(self, name: str) -> bool:
        """Let a replica have requests again, whyever it was drained; whether it was. Raises KeyError."""
        replica, drain = self._fleet.named(name), self._drains.pop(name, None)
        if drain is not None:
            assert drain.task is not None
            drain.task.cancel()
            replica.leaving = False
            self._listener.leaving(replica)
        return self._inspector.undrain(name) or drain is not None

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
            "moving": len(drain.moving),
            "left": drain.left,
            "alone": sorted(drain.alone),
            "running": replica.load,
            "empty": drain.emptied_s is not None and not replica.load,
            "took_s": round(until_s - drain.begun_s, 3),
        }

    def close(self) -> None:
        """Drain no more."""
        for drain in self._drains.values():
            if drain.task is not None:
                drain.task.cancel()

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
        found = self._found(drain.replica.name)
        for stream, legs in found.items():
            if len(drain.moving) >= drain.at_once:
                break
            if any(move.stream is stream for move in drain.moving):
                continue
            if not (heirs := self._heirs(drain.replica, stream.call.model)):
                alone.add(stream.call.model)
            elif (why := await stream.stays(heirs)) is not None:
                _stay(drain, legs, why)
            elif stream.open and not all(leg.over for leg in legs):
                drain.moving.append(Move(stream, stream.completion_tokens, self._clock()))
                for leg in legs:
                    leg.end(LegEnd(Cause.MOVED, "its server is drained"))
        drain.alone = alone
        self._look_whether_empty(drain)

    def _heirs(self, replica: Replica, model: str) -> list[Continues | None]:
        """What those continue by replay that its streams could go to: they are like it. None where none is good."""
        up = self._fleet.up(model)
        avoid = frozenset((replica.name, *strangers(up, model, [replica.origin(model)])))
        if self._fleet.second(model, avoid) is None:
            return []
        return [self._fleet.continues(one.name) for one in up if one.name not in avoid]

    def _found(self, name: str) -> dict[Stream, list[Leg]]:
        """Streams there that may be moved, with their legs; those that only race a leg elsewhere are given up."""
        found: dict[Stream, list[Leg]] = {}
        for leg in self._upstream.streams(name):
            part = leg.receiver
            if not isinstance(part, Part) or part.stream is None or part.stays is not None:
                continue
            if part.racing:
                part.close()
            else:
                found.setdefault(part.stream, []).append(leg)
        return found

    def _arrivals(self, drain: Drain) -> None:
        now_s, still = self._clock(), []
        for move in drain.moving:
            if not move.arrived and now_s - move.begun_s < MOVE_S_MAX:
                still.append(move)
            elif move.stream.ending in GOES_ON:
                drain.moved += 1
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


def _stay(drain: Drain, legs: list[Leg], why: str) -> None:
    drain.left[why] = drain.left.get(why, 0) + 1
    for leg in legs:
        if isinstance(leg.receiver, Part):
            leg.receiver.stays = why
