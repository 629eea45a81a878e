"""Ten thousand worlds, and that they are worth it: always the same for a seed, and never dull."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from tests.sim.__main__ import shard
from tests.sim.plan import drawn
from tests.sim.run import traced

WORLDS = int(os.environ.get("SIM_WORLDS", "10000"))
SHARDS = 10
PROCESSES = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # beside other tests, which keep the other cores busy
NICE = 5  # worlds have no clock to keep; what runs beside them has

# What must be met with in so many worlds, or they test less than they seem to.
EXPECTED = (
    "ending finished", "ending budget_exceeded", "ending books_unavailable", "ending client_left", "ending stopped",
    "ending upstream_lost", "ending uncontinuable", "ending timeout", "ending refused", "failover", "hedge.opened",
    "hedge.won", "hedged in vain", "ejected", "charged after a crash", "leg broken", "leg silent", "leg unreached",
    "leg failed", "leg refused", "leg abandoned", "ending between_tokens_timeout", "replica.breaker",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards() -> Iterator[list["Future[Any]"]]:
    """All worlds, on their way in other processes."""
    size = -(-WORLDS // SHARDS)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), os.nice, (NICE,)) as pool:
        yield [pool.submit(shard, range(n * size, min((n + 1) * size, WORLDS))) for n in range(SHARDS)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(SHARDS))
def test_every_invariant_holds_in_every_world(shards, number):
    """Whatever arrives, stalls, breaks, leaves, dies and comes back, and in whatever order."""
    broken, _ = shards[number].result()

    assert not broken, "\n".join(map(str, broken))


@pytest.mark.slow
def test_the_worlds_are_not_dull(shards):
    """Every end of a request and of a leg, races won and lost, ejections and recoveries are among them."""
    seen: Counter[str] = sum((one.result()[1] for one in shards), Counter())

    assert [what for what in EXPECTED if seen[what] * 5000 < WORLDS] == []


@pytest.mark.slow
def test_a_seed_is_one_world():
    """Nothing depends on hashes, on addresses, or on the time of day: two processes tell the same to the byte."""

    def told(hashes: str) -> str:
        command = [sys.executable, "-m", "tests.sim", "--digest", "--worlds", "150"]
        environment = os.environ | {"PYTHONHASHSEED": hashes}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300).stdout

    assert told("1") == told("2") != ""


def test_two_seeds_are_two_worlds():
    """The digest would notice a difference."""
    assert traced(drawn(1))[0] != traced(drawn(2))[0]
    assert traced(drawn(1)) == traced(drawn(1))
