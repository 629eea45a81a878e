"""All clients of a run: when each one comes, and what it does. The same plan for the same seed, however it is divided.

Processes share a run by number: each makes the whole plan, and does its own part of it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from loadtests.traffic import traces
from loadtests.traffic.arrivals import ARRIVALS_MAX, Due, poisson
from loadtests.traffic.scenarios import COMPLETIONS, REPLAY, SCENARIOS, TENANTS, Ask, Script, Sizes, drawn


@dataclass(frozen=True, slots=True)
class Client:
    """One client: when it is due, its name, whose it is, and its script."""

    due: Due
    scenario: str
    tenant: str
    name: str
    script: Script


@dataclass(frozen=True, slots=True)
class Mine:
    """Which part of a run is one process's: `number` of `of`."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A run in an open loop. rates_per_s: of clients, one after the other, each for each_s.

    rows: of a trace, which then says when clients come; tenants: those that keys are there for.
    """

    scenario: str
    seed: int = 1
    rates_per_s: tuple[float, ...] = (1.0,)
    each_s: float = 30.0
    sizes: Sizes = field(default_factory=Sizes)
    rows: tuple[traces.Row, ...] = ()
    scale: traces.Scale = field(default_factory=traces.Scale)
    tenants: tuple[str, ...] = ()

    @property
    def takes_s(self) -> float:
        """From the first client's time to the last one's, and no answer yet."""
        if self.scenario == REPLAY:
            return self.rows[-1].at_s / self.scale.speed if self.rows else 0.0
        return self.each_s * len(self.rates_per_s)

    def of(self, share: float) -> "Plan":
        """The same with a share of its clients a second."""
        return replace(self, rates_per_s=tuple(rate * share for rate in self.rates_per_s))

    def clients(self, mine: Mine = Mine()) -> Iterator[Client]:
        """Those of one process, in the order of their times."""
        for due in self._due():
            if due.number % mine.of == mine.number:
                yield self.client(due)

    def client(self, due: Due) -> Client:
        """The client of that number."""
        rng = random.Random(f"{self.seed}/{self.scenario}/{due.number}")
        name = f"{self.scenario}-{due.number}"
        tenant = self.tenants[due.number % len(self.tenants)] if self.tenants else ""
        if self.scenario == REPLAY:
            return Client(due, REPLAY, tenant, name, self._replayed(due.number))
        scenario = self.scenario
        if scenario == TENANTS:
            tenant, scenario = drawn(rng)
        return Client(due, scenario, tenant, name, SCENARIOS[scenario](rng, self.sizes))

    def _due(self) -> Iterator[Due]:
        if self.scenario != REPLAY:
            yield from poisson(self.rates_per_s, self.each_s, f"{self.seed}/{self.scenario}")
            return
        for number, row in enumerate(self.rows[:ARRIVALS_MAX]):
            yield Due(row.at_s / self.scale.speed, 0, number)

    def _replayed(self, number: int) -> Script:
        row = self.rows[number % len(self.rows)]
        length = self.scale.of(row.tokens)
        body = {"prompt": traces.prompt(row, number, self.seed, self.scale), "max_tokens": length}
        yield [Ask(body | ({"ignore_eos": True} if self.sizes.exact else {}), COMPLETIONS)]
