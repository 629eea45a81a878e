"""Whose turn it is, and what requests are promised: each waits here for a server that has room, and is judged after.

A request's tier says both. What it is promised follows from its own size; a promise that cannot be kept any more is
refused rather than broken, and what became of all others is counted (guards/attainment.py).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import structlog

from gateway.books.ledger.contract import Lines
from gateway.books.tenants import Tenant
from gateway.fleet.replicas import Fleet
from gateway.forecasts import Forecast, Forecasts, Look
from gateway.homes import TURN, Homes, Lodger
from gateway.ladder import AS_ASKED, Eased, Ladder
from gateway.quote import Quote, prompt_likely
from gateway.sla_table import shown
from gateway.slices import in_turns
from gateway.stream.call import Call
from gateway.stream.seams import Sink
from gateway.waiting import Waiting
from guards.attainment import Attainment, Verdict
from guards.breaker import Entry, Outcome
from guards.budget import UNLIMITED
from guards.place import Ask, Place, Rank, Share
from guards.refusal import CUTS, Ending, Reason, Refused
from guards.sla import Promise, Tier
from guards.timeouts import Due

log = structlog.get_logger()

COUNT_S = 0.25  # how often it is counted what running requests have had: for fairness, and for room at servers
SHARES_MAX = 65_536
PREFIX_TOKENS = 512  # that others which begin alike are taken to share
NOTHING: Mapping[str, Any] = {}
_new = tuple.__new__  # what a NamedTuple's own does, twice as fast

# Ends that say nothing of the promise: whoever asked, or an operator, ended it.
THEIRS = (Ending.REVOKED, Ending.SESSION)
WHOLE = (Ending.FINISHED, *CUTS)
OURS = (Reason.OVERLOADED, Reason.LATE, Reason.NO_REPLICA, Reason.FIRST_TOKEN, Reason.TIMEOUT, Reason.UPSTREAM)


class Answer(Protocol):
    """What is being answered. Tokens: as far as they were delivered. prompt_known: of all its prompts.

    so_far: ids of prompt and answer, for each choice.
    """

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def prompt_known(self) -> bool: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def pace(self) -> Any: ...
    @property
    def so_far(self) -> Callable[[], Sequence[Sequence[int]]]: ...


class Turns:
    """Lets requests wait for their turn, and keeps what they were promised in mind.

    running: requests that have had their turn. ranks: of tiers, by name; usual: of keys for which none is said.
    waiting: None where requests are sent as they come. ladder: None where nobody's answer is made worse.
    forecasts: None where no tier promises anything. homes: None where sessions live nowhere.
    ended: told of each request that had its turn, at its end.
    fair_by: between whom turns are shared: key, user, team or org. scheduled: models whose servers go by priority.
    judged: told of each promise that was made, and what became of it. waited: of each that waited, for
        which model and how long. sessions: whether requests of one are near to each other.
    Times in seconds, by `clock`, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        ranks: Mapping[str, Rank],
        usual: Rank,
        clock: Callable[[], float],
        *,
        forecasts: Forecasts | None = None,
        fair_by: str = "key",
        scheduled: frozenset[str] = frozenset(),
        refuse_late: bool = True,
        sessions: bool = True,
        judged: Callable[[str, Verdict], None] = lambda name, verdict: None,
        waited: Callable[[str, float], None] = lambda model, seconds: None,
    ) -> None:
        self.fleet, self._ranks, self._usual, self.clock = fleet, ranks, usual, clock
        self.forecasts, self._fair_by, self._scheduled, self._refuse_late = forecasts, fair_by, scheduled, refuse_late
        self._judged, self._waited, self.sessions = judged, waited, sessions
        self.waiting: Waiting | None = None
        self.ladder: Ladder | None = None
        self.homes: Homes | None = None
        self.ended: Callable[[Turn], None] = lambda turn: None
        self.attainment = Attainment()
        self._shares: dict[tuple[str, str | None], Share] = {}
        self.running: dict[Turn, None] = {}

    def ease(self, call: Call, tenant: Tenant, sink: Sink) -> Eased:
        """Say what is taken from a request that would be refused as it is, before anything is held for it."""
        if self.ladder is None or self.waiting is None:
            return AS_ASKED
        return self.ladder.ease(call, partial(self._foresee, call, tenant, sink.received_at))

    def one(self, call: Call, tenant: Tenant, sink: Sink, quote: Quote) -> "Turn":
        """One request that has come, and what it is promised: by what it asked for, not by what it gets."""
        rank = self._usual if tenant.tier is None else self._ranks.get(tenant.tier, self._usual)
        tokens, likely = quote.terms.prompt_likely, quote.terms.answer_likely
        asked = quote.terms.asked_likely or likely
        promise = None if rank.promises is None else self._promise(rank.promises, call, call.model, tokens, asked)
        if promise is not None and tenant.pace is not None:  # its own limit says how fast it comes
            promise = promise._replace(between_s=None, total_s=None)
        if call.model in self._scheduled:
            call.body["priority"] = rank.priority
        turn = Turn(self, call, tenant, rank, (tokens, likely * call.choices), promise, sink.received_at)
        if rank.promises is not None and rank.promises.ends:
            limit_s = rank.promises.turn_s(call.prompt_bound, call.max_tokens or UNLIMITED)
            turn.due = None if limit_s is None else Due(turn.arrived_s + limit_s, Ending.TIMEOUT, limit_s)
        return turn

    def _foresee(
        self, call: Call, tenant: Tenant, arrived_s: float, model: str, likely: int, size: int
    ) -> Refused | None:
        """Why a request would be refused now, were it for this model.

        likely, size: tokens of each answer, as it was asked for and as it would be.
        """
        assert self.waiting is not None
        rank = self._usual if tenant.tier is None else self._ranks.get(tenant.tier, self._usual)
        tokens = prompt_likely(call, self.fleet.window(model))
        promise = None if rank.promises is None else self._promise(rank.promises, call, model, tokens, likely)
        turn = Maybe(self, call, tenant, rank, (tokens, size * call.choices), promise, arrived_s)
        return self.waiting.foresee(self.ask(turn)._replace(model=model))

    def _promise(self, tier: Tier, call: Call, model: str, tokens: int, likely: int) -> Promise | None:
        if not call.stream and call.asked_s is None:
            return tier.whole(tokens, likely)
        uncached = tokens
        if self.forecasts is not None:
            uncached = self.forecasts.uncached(model, tokens, call.near)
        promise = tier.promise(tokens, uncached, likely, call.asked_s)
        if promise is not None and not call.stream:  # nobody sees its first token
            return None if promise.total_s is None else promise._replace(first_s=None, between_s=None)
        return promise

    def ask(self, turn: "Turn") -> Ask:
        """What it asks of admission."""
        call, tenant, rank = turn.call, turn.tenant, turn.rank
        agent, depth = None, 1
        if call.agent is not None:
            agent, depth = f"{tenant.key_id}/{call.agent}", call.agent.count("/") + 1
        due_s, promise = None, turn.promise
        if promise is not None and promise.first_s is not None and self._refuse_late:
            due_s = turn.arrived_s + promise.first_s
        into, out = turn.tokens
        share = self._shares.get((tenant.key_id, tenant.tier)) or self._share(tenant, rank)
        return _new(Ask, (share, call.model, into, out, rank.priority, depth, agent, due_s, turn))

    def _share(self, tenant: Tenant, rank: Rank) -> Share:
        """Make what one key may have, once."""
        if len(self._shares) >= SHARES_MAX:
            self._shares.clear()
        made = self._shares[tenant.key_id, tenant.tier] = Share(self._whose(tenant), rank.weight, rank.permits)
        return made

    def _whose(self, tenant: Tenant) -> str:
        """Whose turn it is: the nearest scope that is as wide as is asked for."""
        found = {one.partition(":")[0]: one for one in Lines.of(tenant.lines).scopes}
        levels = ("key", "user", "team", "org")
        return next((found[one] for one in reversed(levels[: levels.index(self._fair_by) + 1]) if one in found),
                    tenant.key_id)  # fmt: skip

    # ---------------------------------------------------------------- what admission asks

    def route(self, place: Place) -> str | None:
        """Which server a request goes to now; None while those that it could go to are full."""
        ask, waiting = place.ask, self.waiting
        turn = ask.about
        assert isinstance(turn, Turn)
        assert waiting is not None
        fits, near = waiting.fits, turn.call.near
        if ask.deadline_s is None or self.forecasts is None:
            name = self.fleet.with_room(ask.model, near, lambda one: fits(one, place), home=turn.call.home)
        else:
            left_s = ask.deadline_s - self.clock()
            look = turn.foreseen = Look(self.forecasts, ask.input_tokens, near, left_s)
            fit = partial(fits, place=place)
            name = self.fleet.with_room(ask.model, near, fit, look.first_s, left_s, turn.call.home)
        turn.choose(name, waits=place.waits)
        return name

    def first_token_s(self, place: Place, server: str | None) -> float:
        """How long its first token will take there."""
        turn = place.ask.about
        assert isinstance(turn, Turn)
        if self.forecasts is None:
            return 0.0
        if server is not None and (look := turn.foreseen) is not None:
            found = look.found.get(server)
            return look.first_s(self.fleet.named(server)) if found is None else found
        return self.forecasts.first_token_s(server, place.ask.model, place.ask.input_tokens, turn.call.near)

    # ---------------------------------------------------------------- while they run

    async def run(self) -> None:
        """Count what running requests have had, again and again, and look who may start by that.

        Also by what nobody tells of: that a breaker has been open for long enough, or a server is no longer doubtful.
        """
        while True:
            await asyncio.sleep(COUNT_S)
            try:
                async for turn in in_turns(list(self.running)):
                    turn.count()
                if self.waiting:
                    self.waiting.again()
            except Exception as error:  # a bug must not be the end of all counting
                log.error("turns.fault", exc_info=error)

    def waited(self, turn: "Turn") -> None:
        self._waited(turn.call.model, turn.waited_s)

    def shown(self) -> dict[str, Any]:
        """What was promised and kept, for operators."""
        return shown(self.attainment, 0 if self.waiting is None else len(self.waiting))

    def judge(self, turn: "Turn", verdict: Verdict) -> None:
        """Note what became of a promise."""
        promise = turn.promise
        assert promise is not None
        self.attainment.note(promise.service_class, promise.size, verdict)
        self._judged(promise.service_class, verdict)


class Turn:
    """A block around one request: what it was promised, its place, and where it runs.

    tokens: of its prompt, and of its answers, about. promise: None where it was promised nothing.
    arrived_s: by the clock of all turns; waited_s: for its turn. foreseen: when it was last routed.
    due: when it must end, by the limit of its class.
    lodger: the session that it is of. came_from: where that lived until now, if it moved between turns.
    """

    __slots__ = (
        "_at", "_before", "_chosen", "_entry", "_expected", "_forecast", "_place", "_sent", "_turns", "answer",
        "arrived_s", "call", "came_from", "due", "foreseen", "lodger", "promise", "rank", "tenant", "tokens",
        "waited_s",
    )  # fmt: skip

    def __init__(
        self, turns: Turns, call: Call, tenant: Tenant, rank: Rank, tokens: tuple[int, int], promise: Promise | None,
        arrived_s: float,
    ) -> None:  # fmt: skip
        self._turns, self.call, self.tenant, self.rank, self.tokens = turns, call, tenant, rank, tokens
        self.promise, self.arrived_s = promise, arrived_s
        self.answer: Answer | None = None
        self._place: Place | None = None
        self._chosen: str | None = None
        self._expected: str | None = None
        self._entry: Entry | None = None
        self._forecast: Forecast | None = None
        self._at = ""
        self._before = 0  # tokens that it had when it was sent where it is
        self._sent = False
        self.foreseen: Look | None = None
        self.due: Due | None = None
        self.lodger: Lodger | None = None
        self.came_from: str | None = None
        self.waited_s = 0.0

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What the client is told."""
        return () if self.promise is None else (("x-holdfast-class", self.promise.service_class),)

    @property
    def about(self) -> dict[str, Any]:
        """What operators are told."""
        return {} if self.promise is None else {"class": self.promise.service_class}

    def choose(self, name: str | None, *, waits: bool = False) -> None:
        """It is to go to this server, or not to that one after all. The breaker there counts it from now on.

        waits: it is not sent at once, and others are placed before it is: routing counts it from now on, too.
        """
        if self._entry is not None:
            self._entry.end(Outcome.NEUTRAL)
        if self._expected is not None:
            self._arrived(self._expected)
        self._chosen, self._entry = name, None
        if name is not None:
            self._entry = self._turns.fleet.admit(name, self.call.model)
            if waits:
                self._expected = name
                self._turns.fleet.enter(name, sum(self.tokens))

    def take(self) -> tuple[str, Entry] | None:
        """Where its first leg goes, once; None where that is for routing to say."""
        name, entry = self._chosen, self._entry
        self._chosen = self._entry = None
        if self._expected is not None:
            self._arrived(self._expected)
        return None if name is None or entry is None else (name, entry)

    def _arrived(self, name: str) -> None:
        """It goes there now, and is counted as one that does; or it does not after all."""
        self._expected = None
        self._turns.fleet.leave(name, sum(self.tokens))

    async def begin(self, answer: Answer) -> None:
        """Wait for its turn. Raises Refused."""
        self.answer, turns = answer, self._turns
        if turns.waiting is not None:
            place = turns.waiting.enter(turns.ask(self))
            if place.server is None:
                await turns.waiting.wait(place)
                self.waited_s = place.waited_s
                turns.waited(self)
            self._place = place
        turns.running[self] = None

    def sent(self, name: str) -> None:
        """It goes to a server: the one that it was given, or another one after a loss."""
        place, turns, tokens, self._sent = self._place, self._turns, self.tokens[0], True
        if place is not None and place.server != name and turns.waiting is not None:
            turns.waiting.move(place, name)
        self._at = name
        if self._forecast is not None:  # what was lost says nothing of how long it would have taken
            self._forecast.over(tokens=0, whole=False, left=False)
        if turns.forecasts is not None and self.call.stream:  # else nothing shows when its prompt was computed
            self._before = 0 if self.answer is None else self.answer.completion_tokens
            shared = tokens if turns.sessions and self.call.session is not None else min(tokens, PREFIX_TOKENS)
            trial = self.foreseen is not None and name in self.foreseen.tried
            self._forecast = turns.forecasts.sent(name, tokens, self.call.near, shared, trial=trial)

    def marked(self, name: str, body: bytes, why: str, lost: str) -> bytes:
        """What a server is sent: see `Homes.marked`."""
        if self.lodger is None or self._turns.homes is None:
            return body
        marked = self._turns.homes.marked(self.lodger, self.call, name, body, why, lost)
        if why == TURN:
            self.came_from = marked.was
        return marked.body

    def first(self, name: str) -> None:
        """Its first token has come from a server; what another one does in a race says nothing of this one."""
        if self._forecast is not None and name == self._at:
            self._forecast.first()

    def won(self, name: str) -> None:
        """Another server has won a race: it goes on there, and what is learnt of the first one ends."""
        self._at = name
        if self.lodger is not None and self._turns.homes is not None:
            self._turns.homes.won(self.lodger, name)
        if self._place is not None and self._place.server != name and self._turns.waiting is not None:
            self._turns.waiting.move(self._place, name)
        forecast, self._forecast = self._forecast, None
        if forecast is not None:
            forecast.over(tokens=0, whole=False, left=False)

    def count(self) -> None:
        """Note what it has had by now."""
        answer, waiting = self.answer, self._turns.waiting
        if self._place is not None and answer is not None and waiting is not None:
            prompt_tokens = answer.prompt_tokens if answer.prompt_known else None
            waiting.count(self._place, prompt_tokens, answer.completion_tokens)

    def __enter__(self) -> Self:
        if self._turns.homes is not None:
            self.lodger = self._turns.homes.enter(self.call, self.tenant)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """It runs no more, however that came."""
        if self.lodger is not None and self._turns.homes is not None:
            self._turns.homes.leave(self.lodger, self.call)
            self._turns.ended(self)
        if self._entry is not None or self._expected is not None:
            self.choose(None)
        self._turns.running.pop(self, None)
        place, answer, waiting = self._place, self.answer, self._turns.waiting
        if place is not None and waiting is not None:
            self._place = used = None
            if answer is not None:
                used = answer.prompt_tokens if answer.prompt_known else None, answer.completion_tokens
            waiting.leave(place, sent=self._sent, used=used)

    def judged(self, ending: Ending, refused: Refused | None) -> Mapping[str, Any]:
        """Say what became of what it was promised, once it has ended; for the journal."""
        answer, forecast = self.answer, self._forecast
        if forecast is None and self.promise is None and not self.waited_s:
            self.answer = None
            return NOTHING
        facts = self.about
        if self.waited_s:
            facts["waited_s"] = round(self.waited_s, 4)
        if forecast is not None:
            tokens = 0 if answer is None else (answer.completion_tokens - self._before) // self.call.choices
            forecast.over(tokens=tokens, whole=ending is Ending.FINISHED, left=ending is Ending.CLIENT_LEFT)
            if forecast.predicted_s is not None and not self._before:  # else its first token came from elsewhere
                facts["predicted_first_s"] = round(forecast.predicted_s, 4)
        if self.promise is not None and (verdict := self._verdict(ending, refused)) is not None:
            self._turns.judge(self, verdict)
            facts["promise"] = verdict
        self.answer = self._forecast = None  # what a stream leaves behind is freed at its end
        return facts

    def _verdict(self, ending: Ending, refused: Refused | None) -> Verdict | None:
        promise, answer = self.promise, self.answer
        assert promise is not None
        if refused is not None or ending is Ending.REFUSED:
            theirs = refused is None or refused.reason not in OURS or (refused.status or 500) < 500
            return None if theirs else Verdict.REFUSED
        whole = ending in WHOLE
        if not whole and ending in THEIRS:
            return None
        took_s = self._turns.clock() - self.arrived_s
        first_at = None if answer is None else answer.pace.first_token_at
        first_s = None if first_at is None else first_at - self.arrived_s
        if ending is Ending.CLIENT_LEFT:
            return promise.judge_left(took_s, first_s)
        if not whole or answer is None:
            return Verdict.LOST
        if promise.between_s is None or first_s is None:
            return promise.judge(first_s or 0.0, None, took_s)
        tokens = answer.completion_tokens // self.call.choices  # of one answer, in the mean
        return promise.judge(first_s, (took_s - first_s) / (tokens - 1) if tokens > 1 else None, took_s)


class Maybe(Turn):
    """A request that is only thought of: no server's breaker counts it."""

    __slots__ = ()

    def choose(self, name: str | None, *, waits: bool = False) -> None:
        """It goes nowhere."""
