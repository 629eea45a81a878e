"""The legs of one request: opened, waited for, and closed all together."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from gateway.fleet.heirs import strangers
from gateway.fleet.pulse import Watch
from gateway.fleet.replicas import Fleet
from gateway.homes import FAILOVER, PLANNED, RACE, TURN
from gateway.stream.leg import Leg, Target
from gateway.stream.leg_end import LegEnd
from gateway.stream.seams import Ask
from gateway.stream.upstream import Upstream
from gateway.turns import Turn
from gateway.visits import Visit, Visits
from guards.continuing import Continues, Way, by_ids
from guards.kinship import Origin, same_model
from guards.refusal import Ending

Headers = tuple[tuple[str, str], ...]
Names = frozenset[str]
SILENT_AGAIN_S = 0.25  # how soon a silent leg for which nothing could be done is thought of again


class Onward(Protocol):
    """What is asked of an answer whose server was lost; see `Relay`."""

    @property
    def delivered(self) -> bool: ...
    def way(self, continues: Continues | None) -> Way | None: ...
    def stuck(self, known: Sequence[Continues | None]) -> tuple[Ending, str]: ...


class Running(NamedTuple):
    """A leg on its way. visit: which one it is part of. part: what it feeds. watch: of a stream.

    likely: tokens that it takes there, about. began: the fingerprints that it is bound to.
    """

    replica: str
    visit: Visit
    leg: Leg
    part: Any
    watch: Watch | None
    likely: int = 0
    began: Names = frozenset()


class Legs:
    """A block in which legs may be opened for a request whose turn it is; leaving it closes them."""

    __slots__ = (
        "_asked", "_failed", "_fleet", "_headers", "_lost", "_missing", "_news", "_next", "_origins", "_running",
        "_targets", "_turn", "_upstream", "_visits", "_waiter", "_why",
    )  # fmt: skip

    def __init__(
        self, fleet: Fleet, upstream: Upstream, targets: dict[str, Target], headers: Headers, turn: Turn
    ) -> None:
        self._fleet, self._upstream, self._targets, self._headers = fleet, upstream, targets, headers
        self._turn, self._visits = turn, Visits(fleet, turn.call.model)
        self._next: Visit | None = None
        self._why, self._lost = TURN, ""  # what brings the next leg where it goes, and in whose stead
        self._asked = False
        self._missing: Names = frozenset()
        self._failed: Names = frozenset()  # when nobody was left
        self._origins: list[Origin] = []  # of what the client has, where they bring no more of it
        self._running: list[Running] = []
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def silent(self) -> list[Running]:
        """Those that have brought nothing for longer than is usual where they run."""
        return [one for one in self._running if one.watch is not None and one.watch.silent]

    @property
    def replicas(self) -> frozenset[str]:
        """Where there is one."""
        return frozenset(one.replica for one in self._running)

    def pick(self, avoid: Names, way: Callable[[Continues | None], Way | None] = by_ids) -> str | None:
        """Name the replica for the next legs, first the one whose turn it is; None when there is none left to try.

        way: how what the client has of it can go on at a replica that continues so much by replay.
        Its breaker counts the request as sent from now on: before it is, others come, and there is one probe.
        """
        given = self._turn.take()
        if given is not None:
            name, entry = given
            self._next = self._visits.begin(name, entry)
        else:
            call = self._turn.call
            picked = self._fleet.pick(call.model, avoid, call.near, self._missing, self._origins, way, call.home)
            if picked is None:
                self._failed = avoid
                return None
            name, self._next = picked, self._visits.begin(picked)
            call.ahead = call.ahead if name == call.home else 0
        self._turn.sent(name)
        if not self._asked:
            self._asked = True
            self._fleet.asked()
        return name

    def begin(self, replica: str, asks: Iterable[Ask], part: Callable[[Ask], Any]) -> None:
        """Begin legs on one replica. part: makes what takes in what a leg brings."""
        visit, self._next = self._next, None
        for ask in asks:  # of a race perhaps none: then its server's breaker must not count it
            if visit is None or visit.name != replica:
                visit = self._visits.begin(replica)
            visit.legs += 1
            self._open(visit, ask, part(ask))

    def _open(self, visit: Visit, ask: Ask, part: Any) -> None:
        watch, replica = None, visit.name
        began = self._fleet.named(replica).bond(self._fleet.now_s())
        if part.receiver is not None:
            part.bond = began
            watch = self._fleet.watch(replica, len(ask.body), self._wake, partial(self._first, replica))
        target = self._targets[replica]
        body = self._turn.marked(replica, ask.body, RACE if part.racing else self._why, self._lost)
        part.leg = leg = self._upstream.open(target, ask.path, body, part.receiver, self._headers, watch)
        self._fleet.enter(replica, ask.likely)
        self._running.append(Running(replica, visit, leg, part, watch, ask.likely, began))
        leg.on_end = self._wake
        if leg.over:
            self._wake()

    def continues(self, name: str) -> Continues | None:
        """What that replica continues by replay."""
        return self._fleet.continues(name)

    def bond(self, name: str, answer: Onward) -> tuple[bool | None, Way | None]:
        """What binds a replica to an answer of which the client has a part.

        Whether it has the fingerprint of the server that brought tokens and was lost last, and how the answer goes on
        there; None: not known, or the client has none of it.
        """
        same = same_model(self._origins, self._fleet.named(name).fingerprints)
        return same, answer.way(self.continues(name)) if answer.delivered else None

    def strangers(self, answer: Onward) -> Names:
        """Those that may not race the legs that are silent now."""
        if not answer.delivered:
            return frozenset()
        model = self._turn.call.model
        origins = [*self._origins, *map(self._origin, self.silent)]
        up, now_s = self._fleet.up(model), self._fleet.now_s()
        unable = [one.name for one in up if answer.way(self.continues(one.name)) is None]
        return frozenset((*strangers(up, model, origins, now_s), *unable))

    def nobody(self, answer: Onward) -> tuple[Ending, str]:
        """Say why `pick` names none."""
        model = self._turn.call.model
        up = self._fleet.up(model)
        apart = strangers(up, model, self._origins, self._fleet.now_s())
        left = [self.continues(one.name) for one in up if one.name not in apart and one.name not in self._failed]
        if answer.delivered and all(answer.way(one) is None for one in (None, *left)):
            return answer.stuck(left)
        if not apart:
            return Ending.UPSTREAM_LOST, "No server of this model can be reached now."
        what = " and ".join(dict.fromkeys(word for words in apart.values() for word in words))
        lost = "The server that generated this answer was lost, and it cannot be continued exactly"
        return Ending.UNCONTINUABLE, f"{lost} on another: those that are left have another {what}."

    async def news(self) -> None:
        """Wait until a leg has ended, or is silent for too long; a short while only, if one is already."""
        if not self._news:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            again = loop.call_later(SILENT_AGAIN_S, self._wake) if self.silent else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if again is not None:
                    again.cancel()
        self._news = False

    def take(self) -> tuple[Running, LegEnd] | None:
        """Take out one leg that has ended, with its end. Raises what went wrong here while it was taken in."""
        for number, one in enumerate(self._running):
            if one.leg.ended.done():
                del self._running[number]
                self._fleet.leave(one.replica, one.likely)
                return one, one.leg.ended.result()
        return None

    def ended(self, running: Running, end: LegEnd, lost: bool, *, delivered: bool = False) -> None:
        """Note how a leg ended that was taken out; with one that was lost, all on its replica are closed.

        Those can be taken at once. Its server is looked at, unless the leg was only moved. delivered: whether the
        client has a part of the answer, and is to get the rest: then that comes only from servers that are like those
        that brought it.
        """
        self._visits.ended(running.visit, end, lost)
        if delivered and running.part.heard:  # also one that was outrun
            self._origins.append(self._origin(running))
        if lost:
            self._why, self._lost = PLANNED if end.planned else FAILOVER, running.replica
            if not end.reached:
                self._missing |= {running.replica}
            if not end.planned:
                self._fleet.suspect(running.replica)
            for one in self._running:
                if one.replica == running.replica:
                    one.leg.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in self._running:
            one.leg.close()
            self._fleet.leave(one.replica, one.likely)
        self._visits.close(left=kind is not None)

    def _origin(self, leg: Running) -> Origin:
        """Its server, as where the stream comes from."""
        return self._fleet.named(leg.replica).origin(self._turn.call.model, self._fleet.now_s(), leg.began)

    def _first(self, replica: str) -> None:
        """A leg there has brought its first tokens."""
        self._visits.progressed()
        self._turn.first(replica)

    def _wake(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
