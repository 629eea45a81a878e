"""So many requests and tokens a minute: who may come in now, and what the client is told of it.

Rates are this process's: they bound how fast, and budgets how much. What a restart forgets is a burst.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from gateway.stream.call import Call
from guards.estimate import AnswerLengths
from guards.rate import SECOND_NS, Counted, RateLine, Taken, duration
from guards.refusal import Reason, Refused

BYTES_PER_TOKEN = 4  # of a body; what a request really took is set right at its end
STATES_MAX = 65_536  # rates in use at once; those at rest are forgotten beyond it

Headers = tuple[tuple[str, str], ...]
Where = tuple[str, Counted]


class Rates:
    """Lets requests in. lengths: of past answers; clock: monotonic, in nanoseconds."""

    def __init__(self, lengths: AnswerLengths, clock: Callable[[], int]) -> None:
        self._lengths, self._clock = lengths, clock
        self._earned: dict[Where, int] = {}

    def enter(self, call: Call, lines: Sequence[RateLine]) -> "Passage":
        """A block around a request that may come in now. Raises Refused: RATE, or INVALID where it never may."""
        if not lines:
            return FREE
        now_ns, likely, least = self._clock(), self._likely(call), self._least(call)
        costs = []
        for line in lines:
            burst = line.rate.burst
            # A guess is no reason to say that a request never may come: it is taken for a burst, and owes the rest.
            tokens = least if least > burst else min(likely, burst)
            costs.append(1 if line.counted is Counted.REQUESTS else tokens)
        for line, cost in zip(lines, costs, strict=True):
            self._admit(line, cost, now_ns, lines)
        taken = [self._take(line, cost, now_ns) for line, cost in zip(lines, costs, strict=True)]
        return Passage(self, taken, self.headers(lines, now_ns))

    def headers(self, lines: Sequence[RateLine], now_ns: int) -> Headers:
        """What is left, as OpenAI says it; of several rates of one kind, the one that has the least left."""
        found: Headers = ()
        for counted in Counted:
            stands = [(line.rate.left(earned, now_ns), line.rate, earned) for line, earned in self._of(lines, counted)]
            if stands:
                left, rate, earned_ns = min(stands, key=lambda one: one[0])
                said = (rate.burst, left, duration(rate.full_in_ns(earned_ns, now_ns)))
                names = ("limit", "remaining", "reset")
                found += tuple(
                    (f"x-ratelimit-{name}-{counted}", str(one)) for name, one in zip(names, said, strict=True)
                )
        return found

    def settle(self, taken: "Took", used: int) -> None:
        """Set right what was taken by what was used."""
        now_ns, rate = self._clock(), taken.line.rate
        at = taken.line.scope, taken.line.counted
        earned_ns = self._earned.get(at, 0)
        if used <= taken.taken.cost:
            self._earned[at] = rate.give_back(earned_ns, now_ns, taken.taken, taken.taken.cost - used)
        else:
            self._earned[at] = rate.owe(earned_ns, now_ns, used - taken.taken.cost)

    def _likely(self, call: Call) -> int:
        """How many tokens a request will take, about: too few are owed at its end, too many given back."""
        prompt = call.body_bytes // BYTES_PER_TOKEN + 1
        answer = self._lengths.q90(call.model, call.prompt_bound)
        return prompt + min(answer, call.max_tokens or answer) * call.choices

    def _least(self, call: Call) -> int:
        """How many it says itself that it will take."""
        return call.body_bytes // BYTES_PER_TOKEN + 1 + (call.max_tokens or 0) * call.choices

    def _admit(self, line: RateLine, cost: int, now_ns: int, lines: Sequence[RateLine]) -> None:
        scope, counted, rate = line
        earned_ns = self._earned.get((scope, counted), 0)
        about = f"{rate.units} {counted} per {rate.period_s} s of {scope}"
        if cost > rate.burst:
            raise Refused(
                Reason.INVALID, f"This request needs about {cost} {counted}, more than {about} ever allow at once."
            )
        wait_ns = rate.wait_ns(earned_ns, now_ns, cost)
        if wait_ns:
            told = dict(self.headers(lines, now_ns))
            detail = f"rate limit reached: {about}; try again in {duration(wait_ns)}"
            raise Refused(Reason.RATE, detail, retry_after_s=wait_ns / SECOND_NS, headers=told)

    def _take(self, line: RateLine, cost: int, now_ns: int) -> "Took":
        at = line.scope, line.counted
        earned_ns, taken = line.rate.take(self._earned.get(at, 0), now_ns, cost)
        if len(self._earned) >= STATES_MAX:
            self._earned = {where: earned for where, earned in self._earned.items() if earned > now_ns}
        self._earned[at] = earned_ns
        return Took(line, taken)

    def _of(self, lines: Sequence[RateLine], counted: Counted) -> list[tuple[RateLine, int]]:
        return [(one, self._earned.get((one.scope, one.counted), 0)) for one in lines if one.counted is counted]


class Took(NamedTuple):
    """What a request took of one rate."""

    line: RateLine
    taken: Taken


class Passage:
    """A block around a request that was let in. A request that took nothing gives all back: to be refused is free.

    used: tokens of it that were used; None until it was served.
    headers: what the client is told.
    """

    __slots__ = ("_rates", "_taken", "headers", "used")

    def __init__(self, rates: Rates | None, taken: Sequence[Took], headers: Headers = ()) -> None:
        self._rates, self._taken, self.headers = rates, taken, headers
        self.used: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in self._taken:
            assert self._rates is not None
            counts = 0 if self.used is None else 1 if one.line.counted is Counted.REQUESTS else self.used
            self._rates.settle(one, counts)


FREE = Passage(None, ())  # of a tenant without rates; nothing is kept in it
