"""Admission: who goes next, and who is refused early. Requests wait here, where they can still be ordered. Pure.

What was sent to a server cannot be called back, or moved to one that has become free. So a server is given no more than
it can hold (`concurrency`), and the rest waits here, in this order: priority band; the tenant that was served least
(`fairness`); the earliest deadline. Who is not served in a band rises to the next one after a while, so that nobody
starves; one of a tenant's at a time, for whoever has flooded it has most of those that have waited long. Requests whose
own permits are taken (`permits`) wait aside, in nobody's way.

Who cannot be in time is refused, at once if that can be foreseen: a queue of requests that all come too late serves
nobody (earliest deadline first does just that under overload). Every wait and every number has a bound.

Whoever calls this tells it the time, sends requests off, and tells them that they are refused:

    before it          admission.foresee(ask, now_s)             what `enter` would raise now; changes nothing
    arrival            place = admission.enter(ask, now_s)       raises Refused; if place.server is set, it runs there
    after anything     moves = admission.next(now_s)             starts moves.started, refuses moves.refused, and comes
                                                                 again at moves.again_s, or when anything else happens
    first token, then
    every few tokens   admission.count(place, input, output)     in all so far; what the tenant is charged, and the KV
    leg goes elsewhere admission.move(place, server)             at once: a stream that was lost does not wait again
    end, cancellation  admission.leave(place, now_s)             whatever the place is at, and also a second time
    death of a server  admission.lost(server)                    its permits come back; its requests move or leave
    each look at one   admission.look(server, running, waiting, preemptions, now_s)

`next` costs little where nothing waits. Which server a request goes to is `route`'s to say, which asks `fits`; and when
its first token will come is `ttft_s`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from guards.backlog import Backlog, Band
from guards.concurrency import Aimd
from guards.fairness import INPUT, OUTPUT
from guards.permits import DEPTHS_MAX, Gate, Permits, lacking
from guards.place import MANY, Ask, Place
from guards.ranking import Ranking
from guards.refusal import Reason, Refused

RETRY_S_MAX = 60.0  # that a client is told to wait before it comes again
RETRY_S_MIN = 1.0

Route = Callable[[Place], str | None]
Predict = Callable[[Place, str | None], float]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many may run and wait, and how long. Times in seconds.

    waiting: in all; one tenant has at most as many as there is room for others still. wait_s: the longest wait.
    rise_s: for each time that a request, or its tenant, has waited so long unserved it may rise a band.
    model, agent: permits of each, for requests of each depth; MANY for any number. server: requests at one server.
    """

    waiting: int = 4096
    wait_s: float = 60.0
    rise_s: float = 10.0
    model: int = MANY
    agent: int = MANY
    server: int = 1024
    aimd: Aimd = field(default_factory=Aimd)

    def __post_init__(self) -> None:
        for name in ("waiting", "wait_s", "rise_s", "model", "agent", "server"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")


class Moves(NamedTuple):
    """What is to be done now. started: each runs at its place's server. again_s: when to ask again, at the latest."""

    started: list[Place]
    refused: list[tuple[Place, Refused]]
    again_s: float | None


NOTHING = Moves([], [], None)


class Admission:
    """Every request's place.

    route: names the server that a request goes to now, one that `fits`; None only where none of its model does.
    ttft_s: how long its first token will take, nine times out of ten, once it is sent to this server; None for one of
        its model's, when it is its turn. Asked for where there is a deadline.
    """

    def __init__(self, bounds: Bounds, route: Route, ttft_s: Predict) -> None:
        self._bounds, self._route, self._ttft_s = bounds, route, ttft_s
        self._permits = Permits(bounds.aimd, bounds.server)
        self._backlogs: dict[str, Backlog] = {}  # by model; there are as many as servers tell of
        self._waiting_of: dict[str, int] = {}  # requests, by tenant; none where nobody waits
        self._open = bounds.model >= MANY  # to all as far as models go
        self._until: Ranking[Place, float] = Ranking()  # all that wait, by when they are refused

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._until)

    def fits(self, server: str, place: Place) -> bool:
        """Whether a server has room for a request. One of each depth of agents always fits."""
        return self._permits.server(server).fits(place.size, place.ask.depth)

    # ---------------------------------------------------------------- what happens

    def enter(self, ask: Ask, now_s: float) -> Place:
        """A request comes. It runs if its place has a server; else it waits. Raises Refused: RATE, OVERLOADED, LATE."""
        share = ask.share
        assert 0 < ask.depth <= DEPTHS_MAX
        backlog = self._backlogs.get(ask.model)
        if backlog is None:
            backlog = self._backlogs[ask.model] = Backlog()
        band = backlog.bands[ask.band]
        tenant = band.tenants.of(share.tenant, share.weight, band.least() if band.ready else None)
        place = Place(ask, tenant, now_s)
        if not (self._waiting_of and (backlog.ready or self._permits.freed)):
            gates = () if self._open and ask.agent is None and share.permits >= MANY else self._gates(ask)
            if (not gates or lacking(gates) is None) and (server := self._route(place)) is not None:
                if ask.deadline_s is not None and (first_s := self._late_s(place, server, now_s)) is not None:
                    raise _late(place, 0.0, first_s, now_s)
                tenant.held += 1
                self._start(place, gates, server, band)
                return place
        self._queue(place, backlog, now_s)
        return place

    def foresee(self, ask: Ask, now_s: float) -> Refused | None:
        """What `enter` would raise now, or None. Changes nothing, where `route` does not."""
        backlog = self._backlogs.get(ask.model) or Backlog()
        tenant = backlog.bands[ask.band].tenants.look(ask.share.tenant, ask.share.weight)
        place = Place(ask, tenant, now_s)
        try:
            others_first = self._until and (backlog.ready or self._permits.freed)
            if not (others_first or self._permits.lacks(self._needs(ask))):
                server = self._route(place)
                if server is not None:
                    first_s = self._late_s(place, server, now_s)
                    return None if first_s is None else _late(place, 0.0, first_s, now_s)
            self._may_wait(place, backlog, now_s)
        except Refused as refused:
            return refused
        return None

    def next(self, now_s: float) -> Moves:
        """Decide what can be: who starts, who is refused."""
        if not self._until:
            self._permits.freed.clear()
            return NOTHING
        started: list[Place] = []
        refused: list[tuple[Place, Refused]] = []
        self._rise(now_s)
        self._expire(now_s, refused)
        looking = True
        while looking:  # each place is woken once for each of its gates at most
            self._unpark(now_s)
            for backlog in self._backlogs.values():
                if backlog.ready:
                    self._dispatch(backlog, now_s, started, refused)
            looking = bool(self._permits.freed)
        return Moves(started, refused, self._again_s())

    def count(self, place: Place, input_tokens: int | None, output_tokens: int) -> None:
        """So many tokens of a request that runs there were in all, so far; output as it was delivered.

        input_tokens: of all its prompts; None while they are not known. What it takes of its server may fall once, to
            what these and its likely output come to: the bytes of a request say little of its prompt.
        """
        learnt = input_tokens is not None and not place.known
        if input_tokens is None:  # also of a stream that was refused: it forgets what it knew
            input_tokens = place.input_tokens
        place.input_tokens = input_tokens
        place.owed = owed = INPUT * input_tokens + OUTPUT * output_tokens
        if owed > place.charged:
            _charge(place, owed - place.charged)
            place.charged = owed
        assert place.runs
        if learnt:
            place.known = True
            place.resize(max(1, input_tokens + max(place.ask.output_tokens, output_tokens)))
        else:
            place.grow(input_tokens + output_tokens)

    def move(self, place: Place, server: str) -> None:
        """A request that runs goes on elsewhere, whether there is room or not: its client has waited already."""
        assert place.runs
        permits = self._permits
        permits.give_back(place)
        permits.take(place, self._gates(place.ask), permits.server(server), place.ask.depth, place.tokens)
        place.server = server

    def leave(
        self, place: Place, now_s: float, *, sent: bool = True, used: tuple[int | None, int] | None = None
    ) -> None:
        """A request ends, however, or its client has gone while it waited. What it was charged is set right.

        sent: whether it went to a server, which computes its prompt whoever hangs up; what did not is not charged.
        used: what `count` would be told at last; None where that has nothing new.
        """
        tenant = place.tenant
        if place.waits:
            self._unqueue(place, now_s)
            tenant.held -= 1
        elif place.runs:
            place.runs = False
            self._permits.give_back(place)
            tenant.held -= 1
            if used is not None:
                into, out = used
                place.owed = INPUT * (place.input_tokens if into is None else into) + OUTPUT * out
            owed = place.owed if sent else 0
            if owed != place.charged:
                more = owed - place.charged
                place.charged = owed
                _charge(place, more)
                if more < 0:
                    self._lowered(place)
        if place.until_s:  # it has waited: queues may keep the place for a while, but not a prompt with it
            place.ask = place.ask._replace(about=None)

    def _lowered(self, place: Place) -> None:
        bands = self._backlogs[place.ask.model].bands
        for band, one in ((place.band, place.tenant), *place.homes):
            bands[band].lowered(one)

    def lost(self, server: str) -> int:
        """A server is lost, or hangs: all permits that name it come back; return how many requests had one."""
        return self._permits.recall(server)

    def look(self, server: str, running: int, waiting: int, preemptions: int, now_s: float) -> None:
        """A server tells how many requests run and wait there, and how many it has preempted since its start."""
        self._permits.server(server).room.look(running, waiting, preemptions, now_s)

    # ---------------------------------------------------------------- starting

    def _gates(self, ask: Ask) -> tuple[Gate, ...]:
        """What a request needs a permit of; its model first, if that is limited."""
        share, bounds = ask.share, self._bounds
        if bounds.model >= MANY and share.permits >= MANY and (ask.agent is None or bounds.agent >= MANY):
            return ()  # as mostly nothing is limited
        return self._permits.gates(self._needs(ask))

    def _needs(self, ask: Ask) -> list[tuple[str, str, int, int]]:
        """The same by name: kind, name, depth, and how many permits there are."""
        share, bounds, depth = ask.share, self._bounds, ask.depth
        needs = [("model", ask.model, depth, bounds.model), ("tenant", share.tenant, depth, share.permits)]
        if ask.agent is not None:
            needs.append(("agent", f"{share.tenant}/{ask.agent}", depth, bounds.agent))
        return [one for one in needs if one[3] < MANY]

    def _start(self, place: Place, gates: tuple[Gate, ...], server: str, band: Band) -> None:
        permits, tenant = self._permits, place.tenant
        permits.take(place, gates, permits.server(server), place.ask.depth, place.size)
        place.server, place.runs = server, True
        place.charged = place.owed = charged = INPUT * place.ask.input_tokens
        tenant.served += charged / tenant.weight  # its homes were charged as it rose
        band.tenants.last = tenant

    def _dispatch(
        self, backlog: Backlog, now_s: float, started: list[Place], refused: list[tuple[Place, Refused]]
    ) -> None:
        """Start requests of one model, in order, until nobody's turn can be taken."""
        blocked: set[int] = set()
        while (place := backlog.first(blocked)) is not None:
            depth, gates = place.ask.depth, self._gates(place.ask)
            gate = lacking(gates)
            if gate is not None and gate is gates[0] and self._bounds.model < MANY:
                blocked.add(depth)
            elif gate is not None:
                self._park(place, gate, backlog, now_s)
            elif (server := self._route(place)) is None:
                blocked.add(depth)
            else:
                first_s = self._late_s(place, server, now_s)
                if first_s is not None:  # not raised: a traceback would hold on to all that is refused together with it
                    self._refuse(place, _late(place, 0.0, first_s, now_s), now_s, refused)
                    continue
                self._unqueue(place, now_s, started=True)
                place.waited_s = now_s - place.arrived_s
                self._start(place, gates, server, band := backlog.bands[place.band])
                band.started(place, now_s)
                started.append(place)

    def _late_s(self, place: Place, server: str, now_s: float) -> float | None:
        """When its first token would come from this server, where that is too late; None where it is in time."""
        due_s = place.ask.deadline_s
        if due_s is None or now_s + (first_s := self._ttft_s(place, server)) <= due_s:
            return None
        return first_s

    # ---------------------------------------------------------------- waiting

    def _queue(self, place: Place, backlog: Backlog, now_s: float) -> None:
        """Let a request wait, or raise Refused."""
        place.until_s = self._may_wait(place, backlog, now_s)
        tenant, due_s = place.ask.share.tenant, place.ask.deadline_s
        place.due_s = place.until_s if due_s is None else due_s
        place.waits = True
        place.tenant.held += 1
        self._waiting_of[tenant] = self._waiting_of.get(tenant, 0) + 1
        self._until.rank(place, place.until_s)
        backlog.bands[place.band].begins(place)
        self._ready(place, backlog, now_s)

    def _may_wait(self, place: Place, backlog: Backlog, now_s: float) -> float:
        """Until when a request may wait; or raise Refused."""
        share, bounds = place.ask.share, self._bounds
        mine, free = self._waiting_of.get(share.tenant, 0), bounds.waiting - len(self._until)
        wait_s = backlog.pace.seconds(backlog.ahead(place), now_s) or 0.0
        retry_s = _retry_s(wait_s)
        if not free:
            raise Refused(Reason.OVERLOADED, f"{bounds.waiting} requests wait already.", retry_after_s=retry_s)
        if mine >= min(share.waiting, free):  # half of the queue for one tenant, a third each for two, and so on
            detail = f"{mine} requests of this key's wait already, as many as may."
            raise Refused(Reason.RATE, detail, retry_after_s=retry_s)
        due_s = place.ask.deadline_s
        if due_s is not None:
            first_s = self._ttft_s(place, None)
            if now_s + wait_s + first_s > due_s:
                raise _late(place, wait_s, first_s, now_s)
            return min(now_s + bounds.wait_s, due_s - first_s)
        if wait_s > bounds.wait_s:
            detail = f"This request would wait {wait_s:.1f} s for a server; {bounds.wait_s:g} s are the limit here."
            raise Refused(Reason.OVERLOADED, detail, retry_after_s=retry_s)
        return now_s + bounds.wait_s

    def _unqueue(self, place: Place, now_s: float, *, started: bool = False) -> None:
        """A request waits no more. started: it takes the permit that it was woken for."""
        share, backlog = place.ask.share, self._backlogs[place.ask.model]
        place.waits = False
        self._unready(place, backlog, now_s, place.size if started else 0)
        if place.woken is not None and not started:
            self._permits.wake(place.woken)
        place.woken = None
        if place.homes and not started:
            for band, tenant in place.homes:
                tenant.charge(-INPUT * place.ask.input_tokens)
                backlog.bands[band].lowered(tenant)
        backlog.bands[place.band].ends(place)
        self._until.discard(place)
        if self._waiting_of[share.tenant] == 1:
            del self._waiting_of[share.tenant]
        else:
            self._waiting_of[share.tenant] -= 1

    def _ready(self, place: Place, backlog: Backlog, now_s: float) -> None:
        backlog.bands[place.band].add(place)
        backlog.pace.note(now_s, busy=True)

    def _unready(self, place: Place, backlog: Backlog, now_s: float, work: int = 0) -> None:
        if place.parked is not None:
            place.parked.parked.discard(place)
            place.parked = None
        else:
            backlog.bands[place.band].discard(place)
            backlog.pace.note(now_s, work, busy=backlog.ready > 0)

    def _park(self, place: Place, gate: Gate, backlog: Backlog, now_s: float) -> None:
        """It lacks a permit of its own: it waits for that, in nobody's way. The one it was woken for is another's."""
        self._unready(place, backlog, now_s)
        if place.woken is not None:
            self._permits.wake(place.woken)
            place.woken = None
        place.parked = gate
        gate.parked.rank(place, (place.band, place.due_s))

    def _unpark(self, now_s: float) -> None:
        """Have those looked at again whose gates have permits again, as many as these are."""
        freed = self._permits.freed
        while freed:
            gate, _ = freed.popitem()
            for _ in range(gate.limit - gate.taken):
                place: Place | None = gate.parked.pop()
                if place is None:
                    break
                place.parked, place.woken = None, gate
                self._ready(place, self._backlogs[place.ask.model], now_s)

    def _rise(self, now_s: float) -> None:
        """Raise those a band whose turn it is, and who have been there for long enough without being served.

        Of a tenant, and of each depth, one at a time. Did all rise that have waited, then a flood would go, request by
        request, before whoever comes to its own band after it; rose one for all, then its wait would be all others'.
        """
        for backlog in self._backlogs.values():
            for due_s, place in backlog.rising(self._bounds.rise_s):
                if due_s <= now_s:
                    self._raise(place, backlog, due_s)

    def _raise(self, place: Place, backlog: Backlog, since_s: float) -> None:
        below, above, ask = backlog.bands[place.band], backlog.bands[place.band - 1], place.ask
        below.discard(place)
        below.ends(place)
        place.tenant.held -= 1
        place.tenant.charge(INPUT * ask.input_tokens)  # else all that one tenant has would rise before another's turn
        place.homes = (*place.homes, (place.band, place.tenant))
        place.band -= 1
        place.since_s = since_s
        place.tenant = above.tenant(ask.share.tenant, ask.share.weight)
        place.tenant.held += 1
        above.begins(place)
        above.add(place)

    def _expire(self, now_s: float, refused: list[tuple[Place, Refused]]) -> None:
        """Refuse those that have waited for as long as they may, or cannot be in time any more."""
        while (place := self._until.first()) is not None and place.until_s <= now_s:
            due_s = place.ask.deadline_s
            if due_s is not None and place.until_s < place.arrived_s + self._bounds.wait_s:
                why = _late(place, 0.0, due_s - place.until_s, now_s)
            else:
                detail = f"This request has waited {now_s - place.arrived_s:.1f} s for a server, as long as it may."
                why = Refused(Reason.OVERLOADED, detail, retry_after_s=_retry_s(now_s - place.arrived_s))
            self._refuse(place, why, now_s, refused)

    def _refuse(self, place: Place, why: Refused, now_s: float, refused: list[tuple[Place, Refused]]) -> None:
        self._unqueue(place, now_s)
        place.tenant.held -= 1
        refused.append((place, why))

    def _again_s(self) -> float | None:
        """When somebody's wait is over, or somebody rises; None where nobody waits."""
        first = self._until.first()
        if first is None:
            return None
        heads = (head for backlog in self._backlogs.values() for head in backlog.rising(self._bounds.rise_s))
        return min([first.until_s, *(due_s for due_s, _ in heads)])


def _charge(place: Place, tokens: int) -> None:
    """Charge a request's tenant for more than its prompt, also where it has risen from."""
    place.tenant.charge(tokens)
    for _, tenant in place.homes:
        tenant.charge(tokens)


def _late(place: Place, wait_s: float, first_s: float, now_s: float) -> Refused:
    """A refusal of a request that cannot be in time."""
    assert place.ask.deadline_s is not None
    over_s = now_s + wait_s + first_s - place.ask.deadline_s
    detail = (
        f"The first token of this request is expected in {wait_s + first_s:.1f} s, of which {wait_s:.1f} s are spent "
        f"waiting for a server; that is {over_s:.1f} s after it is due."
    )
    return Refused(Reason.LATE, detail, retry_after_s=_retry_s(over_s))


def _retry_s(seconds: float) -> float:
    return min(RETRY_S_MAX, max(RETRY_S_MIN, seconds))
