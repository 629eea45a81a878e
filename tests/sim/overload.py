"""More requests than servers can answer: how many come in time, by who waits where, and who is refused when.

    python -m tests.sim.overload      the table

Admission's own decisions run in simulated time against two servers. An answer is good if its first token comes in time;
refusals and late answers are misses alike.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from guards.admission import Admission, Bounds
from guards.backlog import Backlog
from guards.concurrency import Aimd
from guards.fairness import INPUT, OUTPUT
from guards.pace import Pace
from guards.place import Ask, Place, Share
from guards.refusal import Refused
from loadtests.batching import Costs, Engine, Shape, Stream, What

LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)  # times what the servers can answer
SECONDS, WARM_S = 90.0, 30.0  # of one run; and of it, until the count begins
PLENTY_PER_S = 100.0  # more than the servers can answer
LIKELY = 400  # tokens of an answer: nine of ten are shorter
COUNTED = 16  # tokens of an answer that are told together
HUGE = 1 << 40
LOOK_S = 1.0
SOON_S = 0.05  # what else delays a first token: the steps that run when a request comes
PROMPT_MIN, PROMPT_MAX = 5, 6_144
ANSWER_MAX = 2_048
KV_TOKENS = 60_000  # that a server holds
COSTS = Costs(
    step_s=0.010, prefill_token_s=50e-6, decode_s=100e-6, kv_token_s=0.0, noise=0.0, stall_share=0.0
)  # no chance but that of arrivals: policies are compared

OPEN = Bounds(waiting=HUGE, wait_s=HUGE, server=HUGE, aimd=Aimd(HUGE, HUGE, HUGE))
PATIENT = Bounds(waiting=HUGE, wait_s=HUGE, aimd=Aimd(start=400_000))
HOLDFAST = Bounds(aimd=Aimd(start=400_000))


class Policy(NamedTuple):
    """What is before the servers.

    promised: whether admission knows when first tokens are due. early: whether it foresees waits, and so refuses at
    once. error: predictions of first tokens are off by up to so many times, either way.
    """

    bounds: Bounds
    promised: bool = True
    early: bool = True
    error: float = 1.0


POLICIES = {
    "sent at once": Policy(OPEN, promised=False),
    "queued, none refused": Policy(PATIENT, promised=False),
    "queued, refused when late": Policy(HOLDFAST, early=False),
    "holdfast": Policy(HOLDFAST),
    "holdfast, predictions off by 2x": Policy(HOLDFAST, error=2.0),
}
EVERY = dict.fromkeys(POLICIES, LOADS)


class Demand(NamedTuple):
    """One request. within_s: when its first token is due, after it came."""

    at_s: float
    tenant: str
    prompt: int
    answer: int
    within_s: float
    band: int = 0


@dataclass(eq=False)
class Served:
    """What became of a request. first_s: when its first token came, if it did."""

    demand: Demand
    place: Place | None = None
    first_s: float | None = None
    refused_s: float | None = None
    tokens: int = 0
    ended: bool = False

    @property
    def good(self) -> bool:
        """Whether it was served in time."""
        return self.first_s is not None and self.first_s <= self.demand.at_s + self.demand.within_s


def demands(seed: int, per_s: float, seconds: float, tenants: int = 10) -> list[Demand]:
    """Requests as they come: prompts and answers lognormal, every other one in a hurry."""
    rng, at_s, found = random.Random(seed), 0.0, []
    while (at_s := at_s + rng.expovariate(per_s)) < seconds:
        prompt = max(PROMPT_MIN, min(PROMPT_MAX, int(rng.lognormvariate(6.0, 1.0))))
        answer = max(1, min(ANSWER_MAX, int(rng.lognormvariate(4.8, 0.9))))
        found.append(Demand(at_s, f"t{rng.randrange(tenants)}", prompt, answer, rng.choice((1.5, 6.0))))
    return found


def engine(kv_tokens: int = KV_TOKENS) -> Engine:
    """A server as these tables have them."""
    shape = Shape(seqs_max=128)
    return Engine(replace(shape, kv_blocks=shape.blocks(kv_tokens)), COSTS, random.Random(0), each=True)


class Blind(Pace):
    """A pace of which nothing is known: all that waits is told of its end when that has come."""

    def seconds(self, work: float, now_s: float) -> float | None:
        """Never anything."""
        return None


@dataclass
class World:
    """Servers, and admission before them."""

    policy: Policy
    engines: dict[str, Engine] = field(default_factory=lambda: {"a": engine(), "b": engine()})
    now_s: float = 0.0
    on_turn: Callable[["World"], None] = lambda _: None

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._stepping: set[str] = set()
        self._streams: dict[Stream, Served] = {}
        self._again_s = float("inf")
        self._rng = random.Random(0)
        self.admission = Admission(self.policy.bounds, self._route, self._ttft_s)
        if not self.policy.early:
            backlog = self.admission._backlogs["m"] = Backlog()
            backlog.pace = Blind()
        self.served: list[Served] = []
        self.weighted: Counter[str] = Counter()  # tokens, by tenant

    def run(self, asked: list[Demand], until_s: float) -> list[Served]:
        """Serve them, up to a time."""
        for one in asked:
            self.at(one.at_s, lambda one=one: self._arrives(one))
        self.at(LOOK_S, self._look)
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
            self.turn()
        return self.served

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Have something done at a time."""
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, act))

    def turn(self) -> None:
        """What the gateway does after anything happened."""
        moves = self.admission.next(self.now_s)
        for place in moves.started:
            self._dispatch(place)
        for place, _ in moves.refused:
            self._of(place).refused_s = self.now_s
        if moves.again_s is not None and not self.now_s < self._again_s <= moves.again_s:
            self._again_s = moves.again_s
            self.at(max(self.now_s, moves.again_s), lambda: None)  # who is next to rise may have waited long enough
        self.on_turn(self)

    def _arrives(self, one: Demand) -> None:
        served = Served(one)
        self.served.append(served)
        due_s = one.at_s + one.within_s if self.policy.promised else None
        ask = Ask(Share(one.tenant, permits=HUGE, waiting=HUGE), "m", one.prompt, LIKELY, one.band, deadline_s=due_s,
                  about=served)  # fmt: skip
        try:
            served.place = self.admission.enter(ask, self.now_s)
        except Refused:
            served.refused_s = self.now_s
            return
        if served.place.server is not None:
            self._dispatch(served.place)

    def _dispatch(self, place: Place) -> None:
        served, name = self._of(place), place.server
        assert name is not None
        self.weighted[served.demand.tenant] += INPUT * served.demand.prompt
        stream = Stream(name, served.demand.prompt, served.demand.answer)
        self._streams[stream] = served
        self.engines[name].arrive(stream, self.now_s)
        self._step(name)

    def _step(self, name: str) -> None:
        """Be back when its step ends."""
        ends_s = self.engines[name].next_s
        if ends_s is not None and name not in self._stepping:
            self._stepping.add(name)
            self.at(ends_s, lambda: self._stepped(name))

    def _stepped(self, name: str) -> None:
        self._stepping.discard(name)
        for event in self.engines[name].advance(self.now_s):
            if event.what in (What.FIRST, What.TOKEN):
                self._token(self._streams[event.stream], event.stream)
            elif event.what is What.DONE:
                self._ends(self._streams.pop(event.stream))
        self._step(name)

    def _token(self, served: Served, stream: Stream) -> None:
        assert served.place is not None
        self.weighted[served.demand.tenant] += OUTPUT
        if served.first_s is None:
            served.first_s = self.now_s
        served.tokens += 1
        if served.tokens % COUNTED == 1 or served.tokens == stream.output_tokens:
            self.admission.count(served.place, stream.input_tokens, served.tokens)

    def _ends(self, served: Served) -> None:
        assert served.place is not None
        served.ended = True
        self.admission.leave(served.place, self.now_s)

    def _look(self) -> None:
        for name, one in self.engines.items():
            self.admission.look(name, len(one.running), len(one.waiting), one.preemptions, self.now_s)
        self.at(self.now_s + LOOK_S, self._look)

    def _route(self, place: Place) -> str | None:
        fit = [name for name in self.engines if self.admission.fits(name, place)]
        return min(fit, key=lambda name: self.engines[name].tokens_ahead + self.engines[name].kv_tokens, default=None)

    def _ttft_s(self, place: Place, server: str | None) -> float:
        """As a predictor that has learnt would say it; at its turn, it is alone but for those that run."""
        some = next(iter(self.engines.values()))
        tokens = place.ask.input_tokens + (self.engines[server].tokens_ahead if server is not None else 0)
        chunk = some.shape.batched_tokens_max
        per_chunk_s = COSTS.step_s + COSTS.decode_s * len(some.running) + COSTS.prefill_token_s * chunk
        error = self.policy.error ** self._rng.uniform(-1.0, 1.0)
        return (SOON_S + (1 + tokens / chunk) * per_chunk_s) * error

    @staticmethod
    def _of(place: Place) -> Served:
        served = place.ask.about
        assert isinstance(served, Served)
        return served


def capacity_per_s(seed: int) -> float:
    """How many such requests the servers can answer in a second, whenever that is."""
    world = World(POLICIES["queued, none refused"])
    served = world.run([one._replace(at_s=0.0) for one in demands(seed, PLENTY_PER_S, SECONDS)], SECONDS)
    assert world.admission.waiting
    return sum(one.ended for one in served) / SECONDS


class Row(NamedTuple):
    """Of one policy under one load. tokens: of the good ones; early: of the refused, those that heard it at once."""

    policy: str
    load: float
    good_per_s: float
    tokens_per_s: float
    late_per_s: float
    refused_per_s: float
    early: float


def row(policy: str, load: float, seed: int, per_s: float) -> Row:
    """One run; counted is who came after the warm-up, and early enough to be served in the run."""
    world = World(POLICIES[policy])
    served = world.run(demands(seed, load * per_s, SECONDS), SECONDS)
    counted = [one for one in served if WARM_S <= one.demand.at_s < SECONDS - 10.0]
    span_s = SECONDS - 10.0 - WARM_S
    good, refused = [one for one in counted if one.good], [one for one in counted if one.refused_s is not None]
    early = sum(one.refused_s == one.demand.at_s for one in refused)
    tokens = sum(one.demand.prompt + one.demand.answer for one in good)
    return Row(
        policy, load, len(good) / span_s, tokens / span_s, (len(counted) - len(good) - len(refused)) / span_s,
        len(refused) / span_s, early / len(refused) if refused else 1.0,
    )  # fmt: skip


def rows(seed: int = 1, asked: Mapping[str, Sequence[float]] = EVERY) -> Iterator[Row]:
    """Policies, each under some loads."""
    per_s = capacity_per_s(seed)
    for policy, loads in asked.items():
        for load in loads:
            yield row(policy, load, seed, per_s)


def main() -> None:
    """Print the table."""
    print(f"Two servers that answer {capacity_per_s(1):.1f} requests/s, whenever that is.\n")
    print(
        "| policy | load | in time /s | their tokens /s | late /s | refused /s | of these, at once |\n"
        "|---|---|---|---|---|---|---|"
    )
    for one in rows():
        print(
            f"| {one.policy} | {one.load:g}x | {one.good_per_s:.1f} | {one.tokens_per_s:,.0f} | {one.late_per_s:.1f} "
            f"| {one.refused_per_s:.1f} | {one.early:.0%} |"
        )


if __name__ == "__main__":
    main()
