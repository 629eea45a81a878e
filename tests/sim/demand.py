"""One budget, and more asking for it than it can pay: who is let in, who is cut short, what is left over.

    python -m tests.sim.demand      the table of docs/budgets.md

The ledger's own steps and the meter run in simulated time; an oracle that knows every answer's length in advance, and
lets in who can still be paid whole, says who was cut wrongly. Lengths are lognormal, as those of real traces are.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.books.ledger.contract import Lines
from gateway.books.ledger.memory import MemoryShelf
from gateway.books.ledger.steps import Extend, Open, Settle
from guards.budget import Limit, Line, Meter, Verdict
from guards.claim import Load
from guards.estimate import AnswerLengths, prompt_bound
from guards.money import Tokens
from guards.refusal import Refused

TOKENS_MAX = 2048  # that a request asks for
CHUNK, CHUNK_S = 16, 0.32  # fifty tokens a second
LEASE, LOW, WAIT_S, AGAIN_S = 256, 64, 1.0, 0.1  # as the gateway's
BYTES_PER_TOKEN, BODY_BYTES = 4, 200  # of a request's body
ARRIVALS_PER_S = 33.0  # some two hundred at once
BUDGETS = {1_000_000: 4_000, 100_000: 800}  # tokens, and how many requests come


class Asking(NamedTuple):
    """A request, and what it will turn out to be."""

    number: int
    at_s: float
    prompt: int
    answer: int


@dataclass
class Outcome:
    """What became of a budget. spent: also beyond it; cut: whose answers ended early."""

    budget: int
    spent: int = 0
    done: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)

    @property
    def admitted(self) -> int:
        """Who was let in."""
        return len(self.done) + len(self.cut)


def demand(seed: int, count: int) -> list[Asking]:
    """Requests as they come."""
    rng, at_s, found = random.Random(seed), 0.0, []
    for number in range(count):
        at_s += rng.expovariate(ARRIVALS_PER_S)
        prompt = max(5, int(rng.lognormvariate(5.3, 0.9)))
        found.append(Asking(number, at_s, prompt, max(1, min(TOKENS_MAX, int(rng.lognormvariate(5.0, 1.0))))))
    return found


def oracle(asks: list[Asking], budget: int) -> Outcome:
    """Lets in whom it can pay whole, in the order they come."""
    seen = Outcome(budget)
    for one in asks:
        if seen.spent + one.prompt + one.answer <= budget:
            seen.spent += one.prompt + one.answer
            seen.done.add(one.number)
    return seen


def check_then_record(asks: list[Asking], budget: int) -> Outcome:
    """Lets in whoever comes while anything is left, and writes down afterwards what it took."""
    seen, running = Outcome(budget), list[tuple[float, int]]()
    for one in asks:
        while running and running[0][0] <= one.at_s:
            seen.spent += heapq.heappop(running)[1]
        if seen.spent < budget:
            heapq.heappush(running, (one.at_s + one.answer / CHUNK * CHUNK_S, one.prompt + one.answer))
            seen.done.add(one.number)
    seen.spent += sum(cost for _, cost in running)
    return seen


def reserve_max(asks: list[Asking], budget: int) -> Outcome:
    """Holds all that a request may take, and gives back what it has not taken at its end."""
    seen, held = Outcome(budget), 0
    running: list[tuple[float, int, int]] = []  # until when, what it takes, what is held for it
    for one in asks:
        while running and running[0][0] <= one.at_s:
            _, cost, hold = heapq.heappop(running)
            seen.spent, held = seen.spent + cost, held - hold
        hold = one.prompt + TOKENS_MAX
        if seen.spent + held + hold <= budget:
            heapq.heappush(running, (one.at_s + one.answer / CHUNK * CHUNK_S, one.prompt + one.answer, hold))
            held += hold
            seen.done.add(one.number)
    seen.spent += sum(cost for _, cost, _ in running)
    return seen


def holdfast(asks: list[Asking], budget: int) -> Outcome:
    """What the gateway does: the likely length held, topped up in leases, ended at the last token."""
    return Gateway(budget).run(asks)


class Gateway:
    """The ledger's steps under one budget; see `gateway.quote` and `gateway.books.ledger.hold`."""

    def __init__(self, budget: int) -> None:
        self._lines = Lines([Line("key:k", Limit(budget))])
        self._shelf, self._lengths = MemoryShelf(), AnswerLengths()
        self._meters: dict[int, Meter] = {}
        self._caps: dict[int, int] = {}
        self._waits: dict[int, float] = {}
        self._seen = Outcome(budget)
        for one in demand(999, 2_000):  # it has run for a while
            self._lengths.note("m", one.prompt, one.answer)

    def run(self, asks: list[Asking]) -> Outcome:
        """Serve them all."""
        events: list[tuple[float, int, Asking]] = [(one.at_s, one.number, one) for one in asks]
        heapq.heapify(events)
        while events:
            at_s, order, one = heapq.heappop(events)
            again_s = self._step(one, at_s) if one.number in self._meters else self._arrives(one)
            if again_s is not None:
                heapq.heappush(events, (at_s + again_s, order, one))
        return self._seen

    def _arrives(self, one: Asking) -> float | None:
        name, bound = f"r{one.number}", prompt_bound(BYTES_PER_TOKEN * one.prompt + BODY_BYTES, 1, 1)
        worst, tight = (self._open(name, prompt) for prompt in (bound, one.prompt))
        try:
            try:
                worst = worst._replace(least=Load(bound, TOKENS_MAX))
                grant, held = worst.apply(self._shelf, 0.0), bound
            except Refused:
                tight = tight._replace(alone=Load(one.prompt, 1))
                grant, held = tight.apply(self._shelf, 0.0), one.prompt
        except Refused:
            return None
        meter = self._meters[one.number] = Meter(grant.cover, held, LOW)
        meter.prompt(one.prompt, last=True)
        self._caps[one.number] = min(one.answer, grant.payable)
        return CHUNK_S

    def _open(self, name: str, prompt: int) -> Open:
        want = Load(prompt, min(TOKENS_MAX, self._lengths.q90("m", prompt)))
        return Open(name, self._lines, None, want, want)

    def _step(self, one: Asking, at_s: float) -> float | None:
        """One chunk of an answer; how long until the next."""
        meter, name = self._meters[one.number], f"r{one.number}"
        verdict = meter.spend(min(CHUNK, self._caps[one.number] - meter.spent))
        if verdict in (Verdict.WAIT, Verdict.TOP_UP):
            more = Extend(name, Load(meter.wanted, meter.leased + LEASE), meter.least).apply(self._shelf, 0.0)
            since_s = self._waits.setdefault(one.number, at_s) if verdict is Verdict.WAIT else at_s
            if more.cover is not None or not more.of_others or at_s - since_s >= WAIT_S:
                meter.granted(more.cover)
                self._waits.pop(one.number, None)
            meter.asking = False
            if verdict is Verdict.WAIT and not meter.dry:
                return AGAIN_S
            verdict = Verdict.CUT if verdict is Verdict.WAIT else verdict
        if verdict is Verdict.CUT:
            meter.spend(meter.room)
        if verdict is not Verdict.CUT and meter.spent < self._caps[one.number]:
            return CHUNK_S
        self._ends(one, meter)
        return None

    def _ends(self, one: Asking, meter: Meter) -> None:
        Settle(f"r{one.number}", Tokens(meter.input, meter.spent)).apply(self._shelf, 0.0)
        self._seen.spent += meter.input + meter.spent
        if meter.spent == one.answer:
            self._seen.done.add(one.number)
            self._lengths.note("m", one.prompt, meter.spent)
        else:
            self._seen.cut.add(one.number)
        del self._meters[one.number]


POLICIES: dict[str, Callable[[list[Asking], int], Outcome]] = {
    "check, then record": check_then_record, "reserve max_tokens": reserve_max, "holdfast": holdfast, "oracle": oracle
}  # fmt: skip


class Row(NamedTuple):
    """Means over seeds. used: of the budget; the last three: of those let in, but for `finished`, which are numbers."""

    policy: str
    budget: int
    used: float
    overshoot: float
    admitted: float
    cut: float
    wrongly: float


def rows(seeds: int) -> Iterator[Row]:
    """Every policy under every budget."""
    for budget, count in BUDGETS.items():
        totals: dict[str, Counter[str]] = {name: Counter() for name in POLICIES}
        for seed in range(seeds):
            asks = demand(seed, count)
            fine = oracle(asks, budget).done
            for name, policy in POLICIES.items():
                seen = policy(asks, budget)
                totals[name].update(
                    spent=seen.spent, over=max(0, seen.spent - budget), admitted=seen.admitted, cut=len(seen.cut),
                    wrongly=len(seen.cut & fine),
                )  # fmt: skip
        for name, sums in totals.items():
            whole = budget * seeds
            yield Row(
                name, budget, sums["spent"] / whole, sums["over"] / whole, sums["admitted"] / seeds,
                sums["cut"] / sums["admitted"], sums["wrongly"] / sums["admitted"],
            )  # fmt: skip


def main() -> None:
    """Print the table."""
    print(
        "| policy | budget | used | overshoot | let in | cut short | of these, wrongly |\n|---|---|---|---|---|---|---|"
    )
    for one in rows(seeds=10):
        print(
            f"| {one.policy} | {one.budget:,} | {one.used:.1%} | {one.overshoot:.1%} | {one.admitted:,.0f} "
            f"| {one.cut:.2%} | {one.wrongly:.2%} |"
        )


if __name__ == "__main__":
    main()
