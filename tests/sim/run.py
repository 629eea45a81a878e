"""Runs worlds by seed, tells of those that break, and counts what was seen."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple

import structlog

from tests.sim.books import disk
from tests.sim.plan import Plan, drawn
from tests.sim.world import Broken, World

EXPECTED_ERRORS = ("ledger.commit_failed",)  # log lines that a broken disk explains
ERROR = 40  # as a level of the log


class Failure(NamedTuple):
    """A world that broke."""

    seed: int
    why: str

    def __str__(self) -> str:
        return f"world {self.seed} broke: {self.why}\nreplay it: make sim SEED={self.seed}"


def failures(seeds: Iterable[int], seen: "Counter[str] | None" = None) -> Iterator[Failure]:
    """Run the worlds of these seeds; give those that break. seen: counts what happened in them."""
    ground = disk()
    for seed in seeds:
        world = World(drawn(seed), ground)
        why = broken(world)
        if why is not None:
            yield Failure(seed, why)
            ground = disk()
        elif seen is not None:
            seen += sights(world)


def broken(world: World) -> str | None:
    """Run one world; say what broke, if anything did."""
    try:
        with _listening(world):
            world.run()
    except Broken as wrong:
        return str(wrong)
    except Exception as bug:  # of the simulation itself: it has a seed too
        return repr(bug)
    return None


def traced(plan: Plan) -> tuple[list[str], str | None]:
    """Run one world and tell all of it."""
    world = World(plan, disk(), traced=True)
    why = broken(world)
    assert world.trace is not None
    return world.trace, why


def digest(seeds: Iterable[int]) -> str:
    """A checksum of all that happened in some worlds."""
    told = sha256()
    for seed in seeds:
        told.update("\n".join(traced(drawn(seed))[0]).encode())
    return told.hexdigest()


def sights(world: World) -> "Counter[str]":
    """What happened in a world."""
    seen: Counter[str] = Counter(kind for kind, _ in world.facts)
    for kind, fact in world.facts:
        if kind == "request.settled":
            seen[f"ending {fact['ending']}"] += 1
            seen["failover"] += bool(fact.get("failovers"))
            seen["hedged in vain"] += bool(fact.get("hedged_tokens"))
        elif kind == "leg.ended":
            seen[f"leg {fact['cause']}"] += 1
    seen["ejected"] += world.ejected
    seen["charged after a crash"] += sum(client.recovered for client in world.clients.values())
    return seen


@contextmanager
def _listening(world: World) -> Iterator[None]:
    """Errors that the product logs are bugs; nothing is printed."""

    def note(logger: Any, method: str, event: dict[str, Any]) -> Any:
        if event["event"] not in EXPECTED_ERRORS:
            world.broken(f"logged: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    quiet = structlog.make_filtering_bound_logger(ERROR)
    structlog.configure(processors=[note], wrapper_class=quiet, cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
