"""When a request's first token will come: what is known of each replica, and what was learnt of it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from guards.prediction import Guess, Predictor, Situation

LEARNT_PER_S = 20  # outcomes of one replica that are learnt from: each costs as much as three guesses
NEAR_S = 600.0  # after which a prompt is taken to be out of its cache
STALE_S = 10.0  # of nothing at all at a replica, after which what it was like keeps no request out
MUCH = 2.0  # times as long as it took
COLD_MAX = 32  # requests at a replica of which nothing is known yet: as many as are needed to know it
NEAR_MAX = 16_384  # of one replica: sessions and beginnings that it has computed lately


class Prompts:
    """What one replica has to compute before anything that is sent now, and what it has computed lately.

    ahead: tokens of prompts that have no answer yet, as far as they have to be computed.
    """

    __slots__ = ("_known", "ahead")

    def __init__(self) -> None:
        self.ahead = 0
        self._known: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def cached(self, near: Hashable, tokens: int, now_s: float) -> int:
        """How many of a prompt's tokens are likely in its cache: those of one near to it, if that was lately."""
        known = None if near is None else self._known.get(near)
        return 0 if known is None or now_s - known[1] > NEAR_S else min(tokens, known[0])

    def note(self, near: Hashable, tokens: int, now_s: float) -> None:
        """It has computed so many tokens that requests near to this one share."""
        if near is None:
            return
        self._known[near] = tokens, now_s
        self._known.move_to_end(near)
        if len(self._known) > NEAR_MAX:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """Its cache is gone."""
        self._known.clear()


class Seen:
    """One replica, as predictions see it. Some of what happens there is learnt from: every so many-th request."""

    __slots__ = ("_count", "_every", "_second", "predictor", "prompts")

    def __init__(self) -> None:
        self.predictor, self.prompts = Predictor(), Prompts()
        self._second, self._count, self._every = 0, 0, 1

    def takes_note(self, now_s: float) -> bool:
        """Whether this request is one of those that are learnt from."""
        second = int(now_s)
        if second != self._second:
            self._every = max(1, self._count // LEARNT_PER_S) if second == self._second + 1 else 1
            self._second, self._count = second, 0
        self._count += 1
        return self._count % self._every == 0


class Forecast:
    """One request at one replica, from the moment it is sent there until that is over.

    trial: it was sent there though it would come too late by what is known; where it comes much sooner than that, what
        was learnt of the replica is forgotten.
    first: its first token has come; ends what it adds to the prompts that are ahead of others.
    """

    __slots__ = (
        "_ahead", "_clock", "_first_s", "_guesses", "_near", "_seen", "_sent_s", "_shared", "_trial", "predicted_s",
    )  # fmt: skip

    def __init__(
        self, seen: Seen, clock: Callable[[], float], now_s: float, guesses: tuple[Guess, Guess] | None, ahead: int,
        near: Hashable, shared: int, trial: bool,
    ) -> None:  # fmt: skip
        self._trial = trial
        self._seen, self._clock, self._guesses, self._ahead = seen, clock, guesses, ahead
        self._near, self._shared = near, shared
        self._sent_s, self._first_s = now_s, 0.0
        self.predicted_s = None if guesses is None else guesses[0].p90_s
        seen.prompts.ahead += ahead

    def first(self) -> None:
        """Its first token has come."""
        if self._first_s:
            return
        self._first_s = self._clock()
        self._computed()
        self._seen.prompts.note(self._near, self._shared, self._first_s)
        if self._guesses is not None:
            took_s = max(0.0, self._first_s - self._sent_s)
            if self._trial and took_s * MUCH < self._guesses[0].p90_s:
                self._seen.predictor, self._guesses = Predictor(), None
            else:
                self._seen.predictor.first_token.note(self._guesses[0], took_s)

    def over(self, *, tokens: int, whole: bool, left: bool) -> None:
        """It is over there. tokens: of its answer; whole: it is all of it. left: its client did not wait for more."""
        self._computed()
        guesses, self._guesses = self._guesses, None
        if guesses is None:
            return
        now_s = self._clock()
        if not self._first_s:
            if left:
                self._seen.predictor.first_token.gave_up(guesses[0], max(0.0, now_s - self._sent_s))
        elif whole and tokens > 1:
            self._seen.predictor.between_tokens.note(guesses[1], max(0.0, now_s - self._first_s) / (tokens - 1))

    def _computed(self) -> None:
        self._seen.prompts.ahead -= self._ahead
        self._ahead = 0


class Look:
    """A request that looks for a replica, when its first token is due in so many seconds.

    found: when that would come, at each that it looked at. tried: those that it may be sent to against what is known.
    """

    __slots__ = ("_forecasts", "_left_s", "_near", "_tokens", "found", "tried")

    def __init__(self, forecasts: "Forecasts", tokens: int, near: Hashable, left_s: float) -> None:
        self._forecasts, self._tokens, self._near, self._left_s = forecasts, tokens, near, left_s
        self.found: dict[str, float] = {}
        self.tried: frozenset[str] = frozenset()

    def first_s(self, replica: Replica) -> float:
        """When it would come at this one."""
        name, forecasts = replica.name, self._forecasts
        found = forecasts.at(replica, self._tokens, self._near)
        if found > self._left_s and forecasts.may_try(replica, self._tokens):
            found = 0.0
            if forecasts.knows(name, self._tokens):
                self.tried |= {name}
        self.found[name] = found
        return found


class Forecasts:
    """Predicts for all replicas of a fleet. clock: monotonic, seconds."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float]) -> None:
        self._fleet, self._clock = fleet, clock
        self._seen: dict[str, Seen] = {}

    def of(self, name: str) -> Seen:
        """What is known of a replica; there are as many as are configured."""
        return self._seen.get(name) or self._seen.setdefault(name, Seen())

    def lost(self, name: str) -> None:
        """A replica is gone, and its cache with it. What was learnt of how fast it is stays."""
        self.of(name).prompts.forget()

    def knows(self, name: str, tokens: int) -> bool:
        """Whether anything is known of how long first tokens of such prompts take there."""
        return self.of(name).predictor.first_token.knows(tokens)

    def may_try(self, replica: Replica, tokens: int) -> bool:
        """Whether a prompt goes to a replica whatever is foreseen there: else nobody could ever show otherwise.

        Some do while nothing is known of it, and one after it has had nothing to do for long.
        """
        if not self.knows(replica.name, tokens):
            return replica.load < COLD_MAX
        gauges = replica.gauges
        busy = replica.load or (gauges is not None and (gauges.running or gauges.waiting))
        return not busy and self._clock() - replica.idle_s > STALE_S

    def first_token_s(self, name: str | None, model: str, tokens: int, near: Hashable) -> float:
        """How long the first token of a prompt will take at a replica, nine times out of ten; None: at the best one."""
        if name is not None:
            return self._guess(self._fleet.named(name), tokens, near).p90_s
        up = self._fleet.up(model)
        return min((0.0 if self.may_try(one, tokens) else self.at(one, tokens, near) for one in up), default=0.0)

    def uncached(self, model: str, tokens: int, near: Hashable) -> int:
        """How many tokens of a prompt will have to be computed, where most of it is cached."""
        if near is None:
            return tokens
        now_s, most = self._clock(), 0
        for one in self._fleet.up(model):
            most = max(most, self.of(one.name).prompts.cached(near, tokens, now_s))
        return tokens - most

    def sent(self, name: str, tokens: int, near: Hashable, shared: int, *, trial: bool = False) -> Forecast:
        """A streamed request goes to a replica now. shared: tokens that others near to it will have in common with it.

        trial: see `Forecast`.

        Others are not to be told of: they say nothing of their first token, nor when their prompt was computed.
        """
        seen, guesses, now_s = self.of(name), None, self._clock()
        if seen.takes_note(now_s):
            situation, predictor = self._situation(self._fleet.named(name), tokens, near), seen.predictor
            guesses = predictor.first_token.guess(situation), predictor.between_tokens.guess(situation)
        ahead = tokens - seen.prompts.cached(near, tokens, now_s)
        return Forecast(seen, self._clock, now_s, guesses, ahead, near, shared, trial)

    def at(self, replica: Replica, tokens: int, near: Hashable) -> float:
        """How long the first token of a prompt will take at a replica, nine times out of ten."""
        return self._guess(replica, tokens, near).p90_s

    def _guess(self, replica: Replica, tokens: int, near: Hashable) -> Guess:
        return self.of(replica.name).predictor.first_token.guess(self._situation(replica, tokens, near))

    def _situation(self, replica: Replica, tokens: int, near: Hashable) -> Situation:
        prompts, gauges = self.of(replica.name).prompts, replica.gauges
        waiting = kv_use = 0.0
        running = float(replica.load)
        if gauges is not None:
            waiting, kv_use = gauges.waiting or 0.0, gauges.kv_used or 0.0
            running = max(running, gauges.running or 0.0)  # other gateways send it some too
        uncached = tokens - prompts.cached(near, tokens, self._clock())
        return Situation(tokens, uncached, prompts.ahead, int(running), int(waiting), kv_use)
