"""`holdfast move`: one session, with all that runs of it, goes to a replica that an operator names."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from gateway.homes import SAID, Homes, Lodger
from gateway.move import Move, bonds, found
from gateway.moves import AT_ONCE, LOOK_S, in_ms
from gateway.stream.part import Stream
from gateway.stream.upstream import Upstream
from gateway.warming import Warmer
from guards.kinship import between, same_model

MOVE_S_MAX = 20.0  # for all of it: whoever asked is waiting
WHY = "an operator moves its session"
UNBOUND = "it began under another fingerprint, or under none that is known"


class Refusal(Exception):
    """Why a session is not moved; status: as HTTP has it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Hears(Protocol):
    """Told of what becomes of it."""

    def moved(self, why: str) -> None:
        """A stream that was moved goes on elsewhere."""


class SessionMoves:
    """Moves sessions, one stream of them after the other; `AT_ONCE` of one at a time."""

    def __init__(
        self,
        fleet: Fleet,
        homes: Homes,
        upstream: Upstream,
        warmer: Warmer,
        listener: Hears,
        clock: Callable[[], float],
    ) -> None:
        self._fleet, self._homes, self._upstream, self._warmer = fleet, homes, upstream, warmer
        self._listener, self._clock = listener, clock

    async def move(self, session: str, to: str, key_id: str | None = None, user: str | None = None) -> dict[str, Any]:
        """Have a session live there from now on, and what runs of it go on there; say what happened. Raises Refusal.

        key_id, user: whose session it is; needed where several call one so.
        """
        lodgers = self._named(session, key_id, user)
        replica = self._replica(to, lodgers)
        told: dict[str, Any] = {"session": session, "key_id": lodgers[0].key_id, "user": lodgers[0].user}
        told |= {"to": to, "from": sorted({one.replica for one in lodgers if one.replica not in (None, to)})}
        begun_s, moves, left = self._clock(), list[Move](), dict[str, int]()
        streams = [stream for one in lodgers for stream in self._streams(one, to)]
        for lodger in lodgers:
            lodger.pinned = True
            self._homes.settle(lodger, replica, SAID)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(stream: Stream) -> None:
            async with gate:
                await self._move(stream, replica, moves, left)

        try:
            async with asyncio.timeout(MOVE_S_MAX):
                await asyncio.gather(*map(one, streams))
        except TimeoutError:
            left["it took too long"] = len(streams) - len(moves) - sum(left.values())
        arrived = [move for move in moves if move.arrived and move.well]
        return told | {
            "streams": len(streams),
            "moved": len(arrived),
            "left": {why: count for why, count in left.items() if count},
            "pause_ms": in_ms([pause_s for move in arrived for pause_s in move.pauses_s]),
            "recomputed_tokens": sum(move.recomputed for move in arrived),
            "took_s": round(self._clock() - begun_s, 3),
        }

    async def _move(self, stream: Stream, to: Replica, moves: list[Move], left: dict[str, int]) -> None:
        if (why := await self._stays(stream, to)) is not None:
            left[why] = left.get(why, 0) + 1
            return
        move = Move(stream, self._clock())
        stream.call.home = to.name
        if to.stores:
            await move.precopy(self._warmer, to.name)
        legs = self._legs(stream, to.name)
        if not stream.open or not legs or (why := await self._stays(stream, to)) is not None:
            why = why or "it had ended"
            left[why] = left.get(why, 0) + 1
            return
        moves.append(move)
        move.cut(legs, WHY)
        while not move.arrived:  # noqa: ASYNC110 - a stream sets no event per token
            await asyncio.sleep(LOOK_S)
        if move.well:
            self._listener.moved("move")

    async def _stays(self, stream: Stream, to: Replica) -> str | None:
        """Say why a stream cannot go on there; None where it can."""
        if not to.takes(bonds(self._legs(stream, to.name)), self._fleet.now_s()):
            return UNBOUND
        return await stream.stays([self._fleet.continues(to.name)])

    def _named(self, session: str, key_id: str | None, user: str | None) -> list[Lodger]:
        lodgers = self._homes.find(session, key_id, user)
        if not lodgers:
            raise Refusal(404, "No such session is known here: it has asked nothing since this gateway was started.")
        whose = sorted({(one.key_id, one.user) for one in lodgers})
        if len(whose) > 1:
            said = ", ".join(f"{key_id} ({user})" for key_id, user in whose[:8])
            raise Refusal(409, f"Several keys have a session of that name: {said}. Say which, by --key.")
        return lodgers

    def _replica(self, to: str, lodgers: list[Lodger]) -> Replica:
        """Where they are to go. Raises Refusal where that is no good place; all models of one session move together."""
        try:
            replica = self._fleet.named(to)
        except KeyError:
            raise Refusal(404, "There is no replica of that name.") from None
        for lodger in lodgers:
            if replica not in self._fleet.serving(lodger.model):
                raise Refusal(409, f"{to} does not serve {lodger.model}.")
            if lodger.replica == to:
                continue
            if what := between([lodger.origin], replica.like(lodger.model, self._fleet.now_s())):
                raise Refusal(409, f"{to} has another {' and '.join(what)} than {lodger.replica}.")
            if same_model([lodger.origin], replica.fingerprints) is False:
                raise Refusal(409, f"{to} has other weights, configuration or layout than {lodger.replica}.")
        if not replica.health.up:
            raise Refusal(409, f"{to} is down: {replica.health.why}.")
        if replica.drained:
            raise Refusal(409, f"{to} is drained: {replica.why_drained}.")
        return replica

    def _streams(self, lodger: Lodger, to: str) -> list[Stream]:
        """Those of a session that run elsewhere."""
        calls = lodger.running
        names = [one.name for one in self._fleet.serving(lodger.model) if one.name != to]
        legs = [leg for name in names for leg in self._upstream.streams(name)]
        return [stream for stream in found([leg for leg in legs if _call(leg) in calls])]

    def _legs(self, stream: Stream, to: str) -> list[Any]:
        names = [one.name for one in self._fleet.serving(stream.call.model) if one.name != to]
        legs = [leg for name in names for leg in self._upstream.streams(name) if _call(leg) is stream.call]
        return found(legs).get(stream, [])


def _call(leg: Any) -> Any:
    stream = getattr(leg.receiver, "stream", None)
    return None if stream is None else stream.call
