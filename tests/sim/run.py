"""Runs worlds by seed, and tells of those that break."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import structlog

from tests.sim.books import disk
from tests.sim.plan import Plan, drawn
from tests.sim.world import Broken, World

EXPECTED_ERRORS = ("ledger.commit_failed",)  # log lines that a broken disk explains


class Failure(NamedTuple):
    """A world that broke."""

    seed: int
    why: str

    def __str__(self) -> str:
        return f"world {self.seed} broke: {self.why}\nreplay it: make sim SEED={self.seed}"


def failures(seeds: Iterable[int]) -> Iterator[Failure]:
    """Run the worlds of these seeds; give those that break."""
    ground = disk()
    for seed in seeds:
        world = World(drawn(seed), ground)
        why = broken(world)
        if why is not None:
            yield Failure(seed, why)
            ground = disk()


def broken(world: World) -> str | None:
    """Run one world; say what broke, if anything did."""
    try:
        with _listening(world):
            world.run()
    except Broken as wrong:
        return str(wrong)
    return None


def traced(plan: Plan) -> tuple[list[str], str | None]:
    """Run one world and tell all of it."""
    world = World(plan, disk(), traced=True)
    why = broken(world)
    assert world.trace is not None
    return world.trace, why


@contextmanager
def _listening(world: World) -> Iterator[None]:
    """Errors that the product logs are bugs; nothing is printed."""

    def note(logger: Any, method: str, event: dict[str, Any]) -> Any:
        if event["event"] not in EXPECTED_ERRORS:
            world.broken(f"logged: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[note], wrapper_class=structlog.make_filtering_bound_logger(40), cache_logger_on_first_use=False
    )
    try:
        yield
    finally:
        structlog.configure(**before)
