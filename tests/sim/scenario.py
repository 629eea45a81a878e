"""Worlds written by hand, in a few lines:

world = Scenario(servers=2)
world.server(0).freeze(after=5)
one = world.ask(tokens=20)
world.run()
assert one.ending == "finished"
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tests.sim.books import disk
from tests.sim.client import Client
from tests.sim.plan import KINDS_OF_SERVER, KINDS_OF_STREAM, Asking, Fault, Outage, Plan, Server
from tests.sim.run import broken
from tests.sim.world import World


class Scenario:
    """A world to be: what is not said is ordinary. Times in seconds."""

    def __init__(self, servers: int = 2, budget: int | None = None, **plan: Any) -> None:
        made = [Server(standby=number > 0) for number in range(servers)]
        self.plan = Plan(servers=made, asks=[], budgets=[budget], **{"patience_s": 0.25, **plan})
        self._asked: list[Asked] = []
        self.on_step: Callable[[World], None] = lambda world: None
        self.world: World

    def server(self, number: int) -> "Orders":
        """What is to befall a server: `server(0).crash(after=5, for_s=2.0)`, any kind of fault there is."""
        return Orders(self.plan, number)

    def ask(self, *, tokens: int = 20, at_s: float = 0.1, **more: Any) -> "Asked":
        """A client's streamed chat, for an answer of so many tokens. more: fields of `Asking`, or of its request."""
        fields = {name: more.pop(name) for name in list(more) if name in Asking.__dataclass_fields__}
        said = {"stream": True, "return_token_ids": True, **more}
        self.plan.asks.append(Asking(at_s=at_s, tokens=tokens, said=said, **fields))
        self._asked.append(Asked(self, len(self._asked)))
        return self._asked[-1]

    def kill_gateway(self, *at_s: float) -> None:
        """Have it die, and come back."""
        self.plan.crashes_s.extend(at_s)

    def break_disk(self, *, at_s: float, for_s: float) -> None:
        """Have the ledger fail for a while."""
        self.plan.outages.append(Outage(at_s, for_s))

    def run(self) -> World:
        """Live through it. Raises AssertionError where an invariant does not hold."""
        self.world = World(self.plan, disk(), traced=True)
        self.world.on_step = self.on_step
        why = broken(self.world)
        assert why is None, "\n".join([*(self.world.trace or ()), str(why)])
        return self.world


class Orders:
    """Faults of one server, by name."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan, self._number = plan, number

    def __getattr__(self, kind: str) -> Callable[..., None]:
        if kind not in (*KINDS_OF_SERVER, *KINDS_OF_STREAM):
            raise AttributeError(kind)

        def order(*, after: int | None = None, at_s: float | None = None, for_s: float | None = None) -> None:
            assert (after is None) != (at_s is None)
            self._plan.faults.append(Fault(kind, self._number, at_s, after, for_s))

        return order


class Asked:
    """A client, afterwards."""

    def __init__(self, scenario: Scenario, number: int) -> None:
        self._scenario, self._name = scenario, f"r{number}"

    @property
    def client(self) -> Client:
        return self._scenario.world.clients[self._name]

    @property
    def fact(self) -> dict[str, Any]:
        """The one that settles it, in the journal."""
        (fact,) = self._scenario.world.settled(self.client)
        return fact

    @property
    def ending(self) -> str:
        return str(self.fact["ending"])

    @property
    def pause_s(self) -> float:
        """The longest wait between two things that it was given."""
        times = self.client.read_s
        return max((later - sooner for sooner, later in pairwise(times)), default=0.0)

    @property
    def servers(self) -> list[str]:
        """Who was asked for it, in order."""
        facts = [fact for kind, fact in self._scenario.world.facts if kind in ("leg.opened", "hedge.opened")]
        return [fact["replica"] for fact in facts if fact["request_id"] == self._name]
