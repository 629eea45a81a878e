"""A trace, replayed against simulated engines: what was known of each request, and what became of it."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import Enum
from math import ceil
from random import Random
from typing import NamedTuple

from guards.prediction import Situation
from loadtests.batching import Costs, Engine, Event, Shape, Stream, What
from tests.sim.traces import HASHED_TOKENS, Arrival

BATCH = 16  # streams that share a step, when it is reckoned what a request costs


class Known(NamedTuple):
    """What a gateway knows of a request when it gives it to a replica. number: in the trace."""

    number: int
    situation: Situation


class When(Enum):
    """The moments of a request."""

    ASKED = "asked"
    FIRST = "first"
    DONE = "done"


class Moment(NamedTuple):
    """One of them. value_s: the time to the first token, the mean gap between tokens; None where there is none."""

    at_s: float
    when: When
    known: Known
    value_s: float | None = None


class Cache:
    """Which prefixes a replica has, the least recently used forgotten first."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max, self._blocks = blocks_max, OrderedDict[int, None]()

    def hit(self, prefix: Iterable[int]) -> int:
        """How many blocks of it are there; afterwards all are."""
        hits, whole = 0, True
        for block in prefix:
            whole = whole and block in self._blocks
            hits += whole
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._blocks_max:
            self._blocks.popitem(last=False)
        return hits


class Replica:
    """An engine and its prefixes."""

    def __init__(self, shape: Shape, costs: Costs, rng: Random) -> None:
        self.engine = Engine(shape, costs, rng)
        self.cache = Cache(shape.kv_blocks * shape.block_tokens // HASHED_TOKENS)

    def take(self, number: int, arrival: Arrival) -> Known:
        """Give it a request; what was known at that moment."""
        engine, asked = self.engine, arrival.input_tokens
        cached = HASHED_TOKENS * self.cache.hit(arrival.prefix)
        stream = Stream(str(number), asked, arrival.output_tokens, cached)
        ahead, running, waiting = engine.tokens_ahead, len(engine.running), len(engine.waiting)
        situation = Situation(asked, stream.to_prefill, ahead, running, waiting, engine.kv_use)
        engine.arrive(stream, arrival.at_s)
        return Known(number, situation)


def replayed(arrivals: Sequence[Arrival], seed: int, *, busy: float = 0.5) -> list[Moment]:
    """All moments of a trace's requests, in the order in which a gateway learns of them.

    There are as many engines as are about so `busy` with it, and time is stretched for the rest. Each request goes
    where fewest are.
    """
    shape, costs = Shape(), Costs()
    work_s, span_s = sum(_work_s(one, costs) for one in arrivals), arrivals[-1].at_s
    count = ceil(work_s / (busy * span_s))
    stretch = work_s / (busy * span_s * count)
    fleet = [Replica(shape, costs, Random(f"{seed} {number}")) for number in range(count)]
    moments: list[Moment] = []
    known: dict[str, Known] = {}
    for number, arrival in enumerate(arrivals):
        at_s = arrival.at_s * stretch
        happened = _in_order(event for one in fleet for event in one.engine.advance(at_s))
        moments += [_moment(event, known) for event in happened]
        replica = min(fleet, key=lambda one: len(one.engine.running) + len(one.engine.waiting))
        known[str(number)] = replica.take(number, arrival._replace(at_s=at_s))
        moments.append(Moment(at_s, When.ASKED, known[str(number)]))
    rest = _in_order(event for one in fleet for event in one.engine.run_dry())
    return moments + [_moment(event, known) for event in rest]


def _work_s(arrival: Arrival, costs: Costs) -> float:
    """What a request takes of an engine, about, without any prefix that is cached."""
    tokens = arrival.output_tokens
    kv = arrival.input_tokens + tokens / 2
    step_s = costs.step_s / BATCH + costs.decode_s + costs.kv_token_s * kv
    return costs.prefill_token_s * arrival.input_tokens + tokens * step_s


def _in_order(events: Iterable[Event]) -> list[Event]:
    return sorted((one for one in events if one.what is not What.PREEMPTED), key=lambda one: one.at_s)


def _moment(event: Event, known: dict[str, Known]) -> Moment:
    stream = event.stream
    one = known[stream.name] if event.what is What.FIRST else known.pop(stream.name)
    if event.what is What.FIRST:
        return Moment(event.at_s, When.FIRST, one, event.at_s - stream.arrived_s)
    return Moment(event.at_s, When.DONE, one, stream.gap_s)
