"""A failure breaker: whether a server is sent requests for a model, by how many of the last ones it failed. Pure.

pybreaker holds the state and is never given anything to call. It is made for plain functions: it takes a coroutine
that was only made for a success, lets all that come at once through while half-open, and counts whoever hangs up as a
failure (tests/guards/test_breaker.py shows the three). Nor does it know ratios, or any clock but the wall's. So calls
enter and end here, by the clock that is passed in, and pybreaker is told to open, to half-open and to close.

Its words are about the current, as an electric breaker's are: a closed one lets requests pass.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import NamedTuple

import pybreaker

SLICES = 10  # of the window: so much of it is forgotten at once


class State(StrEnum):
    """What a breaker does to new requests; the values are pybreaker's, and metric labels."""

    ALLOWING = pybreaker.STATE_CLOSED
    REFUSING = pybreaker.STATE_OPEN
    PROBING = pybreaker.STATE_HALF_OPEN  # one request at a time


class Outcome(Enum):
    """What a call shows of its server.

    NEUTRAL is nothing: somebody left, or it was refused by a status of 400 to 499, or nobody knows whose fault it was.
    """

    ANSWERED = "answered"
    FAILED = "failed"
    NEUTRAL = "neutral"


class Plan(NamedTuple):
    """When a breaker opens, and for how long. Times in seconds.

    window_s, calls, share: it opens when so large a share of the calls of the window failed, if there were so many.
    open_s, open_s_max: it refuses for so long; twice as long after each probe that failed, up to the latter.
    probe_s: a probe that has not ended for so long keeps others waiting no more, for a stream may last an hour.
    """

    window_s: float = 10.0
    calls: int = 20
    share: float = 0.5
    open_s: float = 5.0
    open_s_max: float = 60.0
    probe_s: float = 30.0


class Entry:
    """One call that was sent, until it is ended: once, whatever is said of it afterwards."""

    __slots__ = ("_breaker", "generation", "probe")

    def __init__(self, breaker: "Breaker", generation: int, probe: bool) -> None:
        self._breaker: Breaker | None = breaker
        self.generation, self.probe = generation, probe

    def end(self, outcome: Outcome) -> None:
        """Tell how it ended. What is told of a state that is over counts for nothing."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.ended(self, outcome)


class Breaker:
    """The breaker of one server and one model. Times in seconds, by `clock`, which must not go back.

    on_turn: told after each change of the state.
    allowing: whether it is in that state: each request asks, of each server.
    generation: how many states there were before this one.
    why: it is in this state; since_s: when it came into it.
    """

    def __init__(
        self, plan: Plan, clock: Callable[[], float], on_turn: Callable[["Breaker"], None] = lambda breaker: None
    ) -> None:
        self._plan, self._clock, self._on_turn = plan, clock, on_turn
        self._holder = pybreaker.CircuitBreaker()
        self._recent = _Recent(plan.window_s)
        self._probe: Entry | None = None
        self._probe_s = 0.0  # when it was sent
        self._open_s = plan.open_s
        self.allowing = True
        self.generation = 0
        self.why = "no failures"
        self.since_s = clock()

    @property
    def state(self) -> State:
        """The state now: one that has refused for long enough is ready for a probe."""
        if self._holder.current_state == State.REFUSING and self._clock() >= self.since_s + self._open_s:
            self._turn(State.PROBING, "it has refused for long enough")
        return State(self._holder.current_state)

    @property
    def refuses(self) -> bool:
        """Whether no request should be sent now. Asking takes nothing."""
        return not self.allowing and (self.state is State.REFUSING or self._probing)

    @property
    def calls(self) -> tuple[int, int]:
        """The calls of the window that have ended, and those of them that failed."""
        return self._recent.counts(self._clock())

    def enter(self) -> Entry:
        """Send a call. Half-open, the first one is the probe; one that is sent though it refuses shows nothing."""
        if self.allowing:
            return Entry(self, self.generation, False)
        probe = self.state is State.PROBING and not self._probing  # looking may begin a generation
        entry = Entry(self, self.generation, probe)
        if probe:
            self._probe, self._probe_s = entry, self._clock()
        return entry

    def ended(self, entry: Entry, outcome: Outcome) -> None:
        """For entries. There are three cases.

        1. It was sent in an older state: that one was judged without it.
        2. Half-open: the probe decides, and one that shows nothing makes room for another.
        3. Closed: it counts, and a failure may be one too many.
        """
        if entry.generation != self.generation:
            return
        if entry.probe:
            self._tried(entry, outcome)
        elif self.allowing and outcome is not Outcome.NEUTRAL:
            self._count(failed=outcome is Outcome.FAILED)

    def _tried(self, entry: Entry, outcome: Outcome) -> None:
        if outcome is Outcome.ANSWERED:
            self._open_s = self._plan.open_s
            self._turn(State.ALLOWING, "a probe was answered")
        elif outcome is Outcome.FAILED:
            self._open_s = min(2 * self._open_s, self._plan.open_s_max)
            self._turn(State.REFUSING, "a probe failed")
        elif self._probe is entry:
            self._probe = None

    def _count(self, failed: bool) -> None:
        now_s = self._clock()
        self._recent.note(now_s, failed)
        if failed:
            calls, failures = self._recent.counts(now_s)
            if calls >= self._plan.calls and failures >= self._plan.share * calls:
                self._turn(State.REFUSING, f"{failures} of {calls} requests failed in {self._plan.window_s:g} s")

    @property
    def _probing(self) -> bool:
        return self._probe is not None and self._clock() < self._probe_s + self._plan.probe_s

    def _turn(self, to: State, why: str) -> None:
        holder = self._holder
        if to is State.REFUSING:
            holder.open()
        elif to is State.PROBING:
            holder.half_open()
        else:
            holder.close()
        self.allowing = to is State.ALLOWING
        self.generation += 1
        self.why, self.since_s, self._probe = why, self._clock(), None
        self._recent.clear()
        self._on_turn(self)


class _Recent:
    """Calls of the last `window_s` seconds, by slices of it."""

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / SLICES
        self._slices: deque[list[int]] = deque(maxlen=SLICES)  # number of the slice, calls, failures

    def note(self, now_s: float, failed: bool) -> None:
        number = int(now_s / self._slice_s)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += failed

    def counts(self, now_s: float) -> tuple[int, int]:
        oldest = int(now_s / self._slice_s) - SLICES
        within = [one for one in self._slices if one[0] > oldest]
        return sum(one[1] for one in within), sum(one[2] for one in within)

    def clear(self) -> None:
        self._slices.clear()
