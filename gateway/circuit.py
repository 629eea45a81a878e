"""A breaker with what runs through it, and a request that is under some."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from gateway import ladder
from gateway.books.ledger.hold import Hold
from guards.budget import UNLIMITED, Limit, Unit, Window
from guards.burn import PERIODS_S, Breaker, State, Watched
from guards.claim import Load, shares, worded
from guards.ladder import Step
from guards.money import Price
from guards.refusal import Refused

BREAKER = "breaker"  # what the journal says that an answer was degraded by
MINOR = (State.DEGRADED, State.CHEAPER)

Headers = tuple[tuple[str, str], ...]
Leaves = tuple[str, ...]
Spent = dict[tuple["Circuit", Leaves], tuple[int, int]]  # money, and of the largest request
NOTHING: Mapping[str, Any] = {}
TOO_LITTLE = "too little may be spent while it is tried whether it may close"


class Name(NamedTuple):
    """One breaker: of what a scope spends of a limit for one model."""

    scope: str
    unit: Unit
    window: Window
    model: str


class Circuit:
    """A breaker, the limit that it watches, and the requests that run through it.

    left: of the limit, as far as was asked; why: it was tripped last. entered: whether a request has come since
        somebody last looked for breakers that nobody uses.
    """

    __slots__ = ("breaker", "entered", "left", "name", "running", "watched", "why")

    def __init__(self, name: Name, watched: Watched) -> None:
        self.name, self.watched = name, watched
        self.breaker = Breaker(PERIODS_S[name.window], watched.plan.tiers(name.window))
        self.running: dict[Watch, None] = {}
        self.left: int | None = None
        self.why = ""
        self.entered = False

    @property
    def budget(self) -> int:
        return self.watched.line.limit.amount

    @property
    def limit(self) -> str:
        """What is watched, for people."""
        scope, limit = self.watched.line
        return f"{worded(limit.unit, limit.amount)} per {limit.window} of {scope}"

    @property
    def level(self) -> str:
        """Of its scope: org, team, user or key."""
        return self.name.scope.partition(":")[0]

    def wait_s(self, now_s: float) -> float:
        """How long it is open yet."""
        return self.breaker.retry_after_s(now_s) if self.breaker.state is State.OPEN else 0.0

    def look(self, now_s: float) -> State:
        """Have time pass for it."""
        return self.breaker.look(now_s, budget=self.budget, left=self.budget if self.left is None else self.left)


class Path(NamedTuple):
    """The breakers of all requests for one model under the same limits, the widest scope first.

    leaves: of each, the narrower scopes on the path.
    """

    watched: Sequence[Watched]
    circuits: tuple[Circuit, ...]
    leaves: tuple[Leaves, ...]


def path(watched: Sequence[Watched], circuits: Sequence[Circuit]) -> Path:
    """Join breakers to a path."""
    scopes = [circuit.name.scope for circuit in circuits]
    below = [dict.fromkeys(one for one in scopes[at + 1 :] if one != scope) for at, scope in enumerate(scopes)]
    return Path(watched, tuple(circuits), tuple(map(tuple, below)))


class Gate(Protocol):
    """Who lets requests in."""

    def begin(self, watch: "Watch") -> None: ...
    def leave(self, watch: "Watch") -> None: ...
    def refusal(self, circuit: Circuit, why: str) -> Refused: ...


class Watch:
    """A block around one request that is under breakers. Leaving it counts what it spent, at last.

    hold: to be set before it is entered. on_trial: it may have no more than what is left of a pass.
    answer_tokens: what each choice may have; headers: what the client is told, about: the journal.
    """

    __slots__ = (
        "_choices", "_counted", "_gate", "_noted", "_taken", "about", "answer_tokens", "circuits", "headers", "hold",
        "leaves", "on_trial",
    )  # fmt: skip

    def __init__(self, gate: Gate | None, through: Path, choices: int = 1, asked: str = "", model: str = "") -> None:
        """asked, model: what the client asked for, and what answers; the same unless that one is cheaper."""
        _, self.circuits, self.leaves = through
        self._gate, self._choices = gate, choices
        self._noted = [0] * len(self.circuits)
        self._counted = -1  # tokens, at the last look
        self._taken: list[tuple[int, int, int]] = []  # of passes: whose, which, how much
        self.answer_tokens, self.on_trial = UNLIMITED, False
        self.headers: Headers = ()
        self.about = NOTHING
        self.hold: Hold | None = None
        for circuit in self.circuits:
            state = circuit.breaker.state
            if state in MINOR:
                self.answer_tokens = min(self.answer_tokens, circuit.watched.plan.answer_tokens)
            elif state is State.HALF_OPEN:
                self.on_trial = True
        if self.answer_tokens < UNLIMITED or model != asked:
            self._tell(asked, model)

    def _tell(self, asked: str, model: str) -> None:
        steps = [Step.SHORTER] if self.answer_tokens < UNLIMITED else []
        steps += [Step.CHEAPER] if model != asked else []
        self.headers = ladder.degraded(self.answer_tokens, asked, model)
        self.about = ladder.taken(steps, BREAKER, asked, model)

    def passes(self, load: Load, price: Price | None) -> tuple[Limit, ...]:
        """Take from each half-open breaker what the request may spend. Raises Refused (BREAKER) where there is none."""
        found = []
        for at, circuit in enumerate(self.circuits):
            if circuit.breaker.state is State.HALF_OPEN:
                unit = circuit.name.unit
                taken = circuit.breaker.take(shares(load, price)[unit])
                if not taken:
                    raise self.too_little(circuit)
                self._taken.append((at, circuit.breaker.trial, taken))
                found.append(Limit(taken, unit=unit))
        return tuple(found)

    def passed(self, at: int) -> bool:
        """Whether it took of the pass that a half-open breaker gives now."""
        return any((at, self.circuits[at].breaker.trial) == (whose, which) for whose, which, _ in self._taken)

    def too_little(self, circuit: Circuit | None = None) -> Refused:
        """What it is told where a pass does not pay for it."""
        assert self._gate is not None
        return self._gate.refusal(circuit or self.circuits[self._taken[0][0]], TOO_LITTLE)

    def over(self, hold: Hold) -> "Watch":
        """It may begin: this is what it holds."""
        if self._gate is not None:
            self.hold = hold
        return self

    def gather(self, spent: Spent, *, last: bool = False) -> None:
        """Add what it has spent since the last time. last: its end may have changed what it costs."""
        assert self.hold is not None
        counted = self.hold.meter.input + self.hold.meter.spent
        if counted == self._counted and not last:
            return
        self._counted = counted
        unit, amount = None, 0
        for at, circuit in enumerate(self.circuits):
            if circuit.name.unit is not unit:
                unit = circuit.name.unit
                amount = self.hold.charge(unit)
            if amount != self._noted[at]:
                which = circuit, self.leaves[at]
                money, largest = spent.get(which, (0, 0))
                spent[which] = money + amount - self._noted[at], max(largest, amount)
                self._noted[at] = amount

    def shorten(self, answer_tokens: int) -> None:
        """Have it end at its next top-up, where it is longer than that."""
        assert self.hold is not None
        self.hold.longest = min(self.hold.longest, answer_tokens * self._choices)

    def give_back(self) -> None:
        """Give back what it took of passes, and did not spend."""
        for at, trial, taken in self._taken:
            self.circuits[at].breaker.give_back(max(0, taken - self._noted[at]), trial)
        self._taken.clear()

    def __enter__(self) -> Self:
        if self._gate is not None:
            try:
                self._gate.begin(self)
            except Refused:
                self.give_back()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._gate is not None:
            self._gate.leave(self)
            self.give_back()


FREE = Watch(None, path((), ()))  # of who is under no breaker; nothing is kept in it
