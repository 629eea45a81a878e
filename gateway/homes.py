"""Which session lives where: its next turn goes where its pages are, and who has lost it writes no more of it.

A generation is a time, not a counter: nothing needs to be kept, and it grows over restarts and between gateways, too.
It is when a session came to where it is. One of which nothing runs gets a newer one with its next turn, if its own is
old: so of two gateways that both send it to one server, neither is taken for long for the one that has lost it.
"""

import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from gateway.books.tenants import Tenant
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from gateway.stream.call import Call
from gateway.stream.wire import encode
from guards.kinship import UNKNOWN, Origin, between, same_model

SESSIONS_MAX = 65_536  # those used last; clients name as many as they like
NAME_HEX = 32
RENEWED_MS = 30_000  # so old a generation may be when a session's next turn begins
NEVER = Origin(UNKNOWN)
# Why a session came to live elsewhere.
TURN, FAILOVER, PLANNED, RACE, SAID = "turn", "failover", "drain", "race", "move"


class Hears(Protocol):
    """Told of what becomes of sessions."""

    def session_moved(self, lodger: "Lodger", was: str, why: str, same: bool | None) -> None:
        """It lives elsewhere now. same: whether the model is the same there; None where that is not known."""


class Marked(NamedTuple):
    """What a leg is sent. was: where its session lived until now, if it moved."""

    body: bytes
    was: str | None = None


@dataclass(eq=False, slots=True)
class Lodger:
    """One session of one model.

    name: as servers are told it, which says nothing of whose it is. key_id, user: whose. session: as its client says.
    replica: where it lives; None before its first leg. origin: what that was like when it was last sent there.
    generation: of what is written for it there; highest: that any leg of it ever had.
    standby: who keeps its pages loaded beside; warmed: tokens that were, at most; warming: whether it is being done.
    pinned: an operator said where it lives. running: its requests that run now.
    """

    name: str
    key_id: str
    user: str
    session: str
    model: str
    replica: str | None = None
    origin: Origin = NEVER
    generation: int = 0
    highest: int = 0
    standby: str | None = None
    warmed: int = 0
    warming: bool = False
    pinned: bool = False
    running: dict[Call, None] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """What the journal says of whose it is."""
        return {"key_id": self.key_id, "user": self.user, "session": self.session, "model": self.model}


class Homes:
    """The sessions used last, each with the replica that it lives at.

    secret: what names are derived with. sticky: whether the next turn goes where the one before was.
    wall_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        fleet: Fleet,
        secret: bytes,
        listener: Hears,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
        *,
        sticky: bool = True,
        sessions_max: int = SESSIONS_MAX,
    ) -> None:
        self._fleet, self._secret, self._listener = fleet, secret, listener
        self._clock, self._wall_ms, self._sticky, self._most = clock, wall_ms, sticky, sessions_max
        self._lodgers: dict[tuple[str, str, str], Lodger] = {}  # the one used last is the last

    def __len__(self) -> int:
        return len(self._lodgers)

    def __iter__(self) -> Iterator[Lodger]:
        return iter(list(self._lodgers.values()))

    def enter(self, call: Call, tenant: Tenant) -> Lodger | None:
        """A request of a session begins: say to routing where that is at home. `leave` must follow."""
        if call.session is None:
            return None
        at = tenant.key_id, call.session, call.model
        lodger = self._lodgers.pop(at, None)
        if lodger is None:
            lodger = Lodger(self._name(at), tenant.key_id, tenant.user, call.session, call.model)
        self._lodgers[at] = lodger
        if len(self._lodgers) > self._most:
            self._forget()
        idle = not lodger.running and lodger.replica is not None
        if idle and self._wall_ms() - lodger.generation > RENEWED_MS:
            lodger.generation = self._newer(lodger)
        if self._sticky or lodger.pinned:
            call.home = self._home(lodger)
        lodger.running[call] = None
        return lodger

    def leave(self, lodger: Lodger, call: Call) -> None:
        """A request of it has ended."""
        lodger.running.pop(call, None)

    def marked(self, lodger: Lodger, call: Call, name: str, body: bytes, why: str, lost: str = "") -> Marked:
        """A leg of it begins at a replica: what that is sent, with the session's name if it keeps pages outside.

        why: of a closed set. There are three cases.

        1. RACE, beside a silent leg: it has not moved yet; but should it win, the silent server must write no more.
        2. Others of its requests run where it lives, and this one was not lost there: it is a guest.
        3. It lives there from now on. lost: where the leg was that this one is in the stead of.
        """
        replica, generation, was = self._fleet.named(name), lodger.generation, None
        if why == RACE:
            generation = self._newer(lodger)
        else:
            call.home = lodger.standby if lodger.standby != name else None
            if len(lodger.running) < 2 or lodger.replica in (None, name, lost):
                was = self.settle(lodger, replica, why)
                generation = lodger.generation
        if not replica.stores:
            return Marked(body, was)
        mark = encode({"holdfast_session": lodger.name, "holdfast_generation": generation})
        return Marked(body[:-1] + b',"kv_transfer_params":' + mark + b"}", was)

    def won(self, lodger: Lodger, name: str) -> None:
        """A leg beside a silent one has won: it lives there now."""
        self.settle(lodger, self._fleet.named(name), RACE)

    def settle(self, lodger: Lodger, replica: Replica, why: str) -> str | None:
        """It lives there from now on. Moved from elsewhere, it is of a newer generation; answers from where.

        RACE: it has it already, as the leg that won does.
        """
        origin, was, before = replica.origin(lodger.model, self._clock()), lodger.replica, lodger.origin
        lodger.origin = origin
        if was == replica.name:
            if lodger.generation < lodger.highest:  # a race was lost
                lodger.generation = self._newer(lodger)
            return None
        lodger.replica, lodger.generation = replica.name, lodger.highest if why == RACE else self._newer(lodger)
        if lodger.standby == replica.name:
            lodger.standby, lodger.warmed = None, 0
        if was is None:
            return None
        same = same_model([before], origin.fingerprints)
        self._listener.session_moved(lodger, was, why, same)
        return was

    def find(self, session: str, key_id: str | None = None, user: str | None = None) -> list[Lodger]:
        """Those that a client calls so, of these keys."""
        return [
            one
            for one in self._lodgers.values()
            if one.session == session and key_id in (None, one.key_id) and user in (None, one.user)
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many live at each replica, and how many have their pages loaded there beside."""
        lives = Counter(one.replica for one in self._lodgers.values())
        hot = Counter(one.standby for one in self._lodgers.values())
        return {name: (lives[name], hot[name]) for name in {*lives, *hot} if name is not None}

    def heir(self, lodger: Lodger, avoid: Iterable[str] = ()) -> str | None:
        """Name the replica that it would best go to: who has its pages, else one of its model with the least to do."""
        now_s, model, near = self._clock(), lodger.model, []
        for one in self._fleet.up(model):
            if one.name in avoid or one.name == lodger.replica or one.drained or not one.health.up:
                continue
            if between([lodger.origin], one.like(model, now_s)):
                continue
            same = same_model([lodger.origin], one.fingerprints)
            hot = one.name == lodger.standby
            near.append(
                (not one.good(model, now_s) and not hot, same is False, not hot, not same, one.tokens, one.name)
            )
        return min(near)[-1] if near else None

    def _home(self, lodger: Lodger) -> str | None:
        """Where its next turn should go; None where that is for routing to say."""
        if lodger.replica is None:
            return None
        home = self._fleet.named(lodger.replica)
        if home.health.up and not home.drained:
            return home.name
        return self.heir(lodger)

    def _newer(self, lodger: Lodger) -> int:
        """A generation above all that were."""
        lodger.highest = max(lodger.highest + 1, self._wall_ms())
        return lodger.highest

    def _name(self, at: tuple[str, str, str]) -> str:
        whose = encode(["session", *at])
        return hmac.new(self._secret, whose, sha256).hexdigest()[:NAME_HEX]

    def _forget(self) -> None:
        """Forget the one used longest ago of which nothing runs."""
        for at, lodger in self._lodgers.items():
            if not lodger.running:
                del self._lodgers[at]
                return
