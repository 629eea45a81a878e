"""Who pays for a request, and under which limits: org, team, user and key, session and agent, and one turn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from gateway.books.ledger.contract import Lines
from guards.budget import UNLIMITED, Limit, Line, Unit, Window
from guards.burn import OFF, Plan, Watched
from guards.rate import Counted, Rate, RateLine
from guards.scope import AGENT, LEVELS_EACH, SESSION, TURN, each_of, scope, scopes, tag
from guards.timeouts import UNSAID, Times, tightest

Limits = Mapping[str, Iterable[Limit]]  # by scope
Each = Mapping[str, tuple[Limit, ...]]  # by level: what each session, agent or turn of a key is under

Rates = Mapping[str, tuple[tuple[Counted, Rate], ...]]  # by scope

TimesOf = Mapping[str, Times]  # by scope
Truncates = Mapping[str, bool]  # by scope
Tiers = Mapping[str, str]  # the same: which tier

Plans = Mapping[str, Plan]  # by scope; of «» where no scope says more

NO_RATES: Rates = {}
NO_PLANS: Plans = {}
NO_TIMES: TimesOf = {}
NO_WORD: Truncates = {}
NO_TIERS: Tiers = {}
NAME_CHARS_MAX = 256
RECORD = Limit(UNLIMITED)  # what a key without limits is under: it refuses nothing, and its tokens are counted
WITHIN_MAX = 256  # sessions and agents of a key that are remembered
SHARE = 50  # percent of what its parent may use, that an agent may


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays for a request. lines: the limits it is under, the widest scope first; one at least, of the key.

    each: what its sessions, agents and turns are under, one by one; see `within`.
    turn: what one request is under, alone. rates: how fast requests may come. pace: how fast the
        output of one may be delivered; of several the slowest.
    breakers: which of its limits are watched, the widest scope first.
    times: how long its turns and sessions may take, as far as its scopes say.
    tier: which it is of, when its turn is; None where nobody says.
    truncates: whether the oldest turns of a conversation that is too long may be dropped.
    limited: whether any limit can refuse it; pays: whether any is in money, so that models need a price.
    source: «open» while no key was ever made. about: their names, for the journal.
    """

    key_id: str
    user: str
    org: str | None = None
    team: str | None = None
    lines: tuple[Line, ...] = ()
    source: Literal["store", "config", "open"] = "store"
    each: Each = field(default_factory=dict)
    turn: tuple[Limit, ...] = ()
    rates: tuple[RateLine, ...] = ()
    pace: Rate | None = None
    breakers: tuple[Watched, ...] = ()
    times: Times = UNSAID
    truncates: bool = False
    tier: str | None = None
    about: Mapping[str, str] = field(init=False)
    _within: dict[tuple[str | None, tuple[str, ...]], "Tenant"] = field(init=False, compare=False, repr=False)
    limited: bool = field(init=False)
    pays: bool = field(init=False)

    def __post_init__(self) -> None:
        own = scope("key", self.key_id)
        if not any(line.scope == own for line in self.lines):
            object.__setattr__(self, "lines", (*self.lines, Line(own, RECORD)))
        whose = scopes(self.key_id, self.user, self.org, self.team)
        object.__setattr__(self, "lines", Lines.under(self.lines, tag(self.org), whose))
        limits = [*self.turn, *(line.limit for line in self.lines)]
        who = {"key_id": self.key_id, "user": self.user, "org": self.org, "team": self.team}
        object.__setattr__(self, "_within", {})
        object.__setattr__(self, "about", {name: value for name, value in who.items() if value is not None})
        object.__setattr__(self, "limited", any(limit != RECORD for limit in limits))
        object.__setattr__(self, "pays", any(limit.unit is Unit.MONEY for limit in limits))

    @property
    def own(self) -> tuple[Limit, ...]:
        """The key's own limits."""
        mine = scope("key", self.key_id)
        return tuple(line.limit for line in self.lines if line.scope == mine and line.limit != RECORD)

    def within(self, session: str | None, agents: tuple[str, ...] = (), share: int = SHARE) -> "Tenant":
        """Who pays for a request of this session and this agent of the key, as far as it names them.

        One that names no session is a session of its own: its limits hold for the one turn.
        agents: the agent's ancestors, the root first, and itself. What it uses is charged to all of them, and each may
            use no more than a share of what its parent may (percent), so that a tree of agents spends no more than its
            root, and budgets fall strictly on the way down. One that would have none has a limit of 0.
        """
        if not self.each:
            return self
        known = self._within.get((session, agents))
        if known is None:
            if len(self._within) >= WITHIN_MAX:
                self._within.clear()
            known = self._within[session, agents] = self._named(session, agents, share)
        return known

    def _named(self, session: str | None, agents: tuple[str, ...], share: int) -> "Tenant":
        lines, turn = list(self.lines), list(self.each.get(TURN, ()))
        limits = self.each.get(SESSION, ())
        if session is None:
            turn += limits
        else:
            lines += [Line(scope(SESSION, self.key_id, session), limit) for limit in limits]
        for depth in range(len(agents)):
            at = scope(AGENT, self.key_id, *agents[: depth + 1])
            part = Fraction(share, 100) ** depth
            carved = [replace(limit, amount=int(limit.amount * part)) for limit in self.each.get(AGENT, ())]
            lines += [Line(at, limit) for limit in carved]
        return replace(self, lines=tuple(lines), each={}, turn=tuple(turn))


def tenant(
    key_id: str,
    user: str,
    org: str | None,
    team: str | None,
    limits: Limits,
    source: Literal["store", "config"] = "store",
    rates: Rates = NO_RATES,
    plans: Plans = NO_PLANS,
    each_as_of: float = 0.0,
    times: TimesOf = NO_TIMES,
    truncates: Truncates = NO_WORD,
    tiers: Tiers = NO_TIERS,
) -> Tenant:
    """Say who a key stands for, under all limits of its scopes.

    each_as_of: when any limit changed last, unix seconds: that of its sessions may have been another's until then.
    """
    known = scopes(key_id, user, org, team)
    lines = [Line(at, limit) for at in known for limit in limits.get(at, ())]
    each = {level: _tightest((limits.get(each_of(level, at), ()) for at in known), each_as_of) for level in LEVELS_EACH}
    each = {level: found for level, found in each.items() if found}
    said = [RateLine(at, counted, rate) for at in known for counted, rate in rates.get(at, ())]
    paces = [line.rate for line in said if line.counted is Counted.OF_STREAM]
    return Tenant(
        key_id, user, org, team, tuple(lines), source, each,
        rates=tuple(line for line in said if line.counted is not Counted.OF_STREAM),
        pace=max(paces, key=lambda rate: rate.interval_ns, default=None),
        breakers=_watched(known, limits, plans) if plans else (),
        times=tightest(times[at] for at in known if at in times),
        truncates=next((truncates[at] for at in reversed(known) if at in truncates), False),
        tier=next((tiers[at] for at in reversed(known) if at in tiers), None),
    )  # fmt: skip


def _watched(known: tuple[str, ...], limits: Limits, plans: Plans) -> tuple[Watched, ...]:
    """The limits that are watched: by the plan of their scope, or of the narrowest one above it.

    A key is always watched where anything is, by the limits of the narrowest scope that has some: so that the fire of
    one key is put out there, and not in all of its org.
    """
    found: list[Watched] = []
    plan = plans.get("")
    for at in known:
        plan = plans.get(at, plan)
        if plan is not None:
            found += [Watched(at, Line(at, one), plan) for one in limits.get(at, ()) if plan.tiers(one.window)]
    key = known[-1]
    if found and found[-1].scope != key and plans.get(key) != OFF:
        found += [one._replace(scope=key) for one in found if one.scope == found[-1].scope]
    return tuple(found)


def _tightest(found: Iterable[Iterable[Limit]], as_of: float) -> tuple[Limit, ...]:
    """Of the limits that several scopes put on the same thing, the least of each unit and window."""
    least: dict[tuple[Unit, Window], Limit] = {}
    for limits in found:
        for limit in limits:
            which = limit.unit, limit.window
            if which not in least or limit.amount < least[which].amount:
                least[which] = limit
    return tuple(replace(limit, as_of=as_of) for limit in least.values())


def nameable(*names: str | None) -> None:
    """Raises ValueError on names that cannot be shown."""
    for name in names:
        if name is not None and not (0 < len(name) <= NAME_CHARS_MAX and name.isprintable()):
            raise ValueError(f"a user, team or org is 1 to {NAME_CHARS_MAX} printable characters")


OPEN = Tenant("open", "anonymous", source="open")
