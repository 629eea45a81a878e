"""Real vLLM servers for the tests that need them, started once per session and only when asked for.

HOLDFAST_TEST_ENGINES="http://127.0.0.1:9001,http://127.0.0.1:9002" uses servers that run already (tiny model, float32,
served as "tiny"); these are never killed.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from gateway.local.engine import Engine, EngineFailed, start_fleet, stop_fleet, tiny_model, vllm_python

# The files that take longest, in this order: of a few workers that take one file after the other, none is left with a
# long one at the end. Those that compute and those that wait take turns.
LONG = (
    "sim/test_worlds.py", "scenarios/test_hangs.py", "scenarios/test_own_death.py", "scenarios/test_gateways.py",
    "loadtests/gameday/test_broken_off.py", "loadtests/gameday/test_on.py",
    "loadtests/test_bench.py", "scenarios/test_soak.py", "loadtests/traffic/test_locust.py",
    "scenarios/test_full_disk.py", "sim/test_overload.py",
    "scenarios/test_breakers.py", "scenarios/test_rude_clients.py", "sim/test_mutants.py",
    "scenarios/test_admission.py", "package/test_built.py", "scenarios/test_doctor.py", "scenarios/test_workers.py",
    "scenarios/test_money.py", "scenarios/test_shutdown.py",
    "scenarios/test_timeouts.py", "scenarios/test_admin.py", "scenarios/test_health.py",
    "scenarios/test_budgets.py", "scenarios/test_bad_input.py", "scenarios/test_faults.py",
    "gateway/books/test_replay.py", "contracts/test_vault.py", "contracts/test_ledger.py", "guards/test_admission.py",
    "gateway/books/test_leased_ledger.py", "sim/test_forecast.py",
)  # fmt: skip
LAST = "e2e/test_kills.py"  # it ends a shared server, which is then started again only where somebody comes after it
WITH_VLLM = ("e2e", "gateway/local")  # where the Makefile looks for those that need vLLM
RUNNING = "HOLDFAST_TEST_ENGINES"
SERVED_NAME = "tiny"
REVIVED_S_MAX = 600.0  # two that start at once, on two cores that others want too

# A shell that starts tests in the background has them, and all that they start, ignore Ctrl-C, which some press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Properties are judged by what they find, not by how long a shared machine took, and each run draws the same examples:
# what is red was made so by a change. `pytest --hypothesis-profile anew` looks for others.
settings.register_profile("anew", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

FreshEngines = Callable[..., list[Engine]]


@dataclass(frozen=True, slots=True)
class Server:
    """A vLLM server that is shared by the session. Who ends it does no harm: the next test has it started again."""

    url: str

    engine: Engine | None = None  # None where it was started by somebody else

    @property
    def address(self) -> str:
        """host:port."""
        return self.url.removeprefix("http://")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, each in its own order, and end with what ends servers."""
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(LONG)} | {tests / LAST: len(LONG) + 1}
    assert all(path.exists() for path in rank), "LONG names a file that is not there any more"
    found = {item.path for item in items if item.get_closest_marker("vllm")}
    lost = [path for path in found if not any(path.is_relative_to(tests / name) for name in WITH_VLLM)]
    if lost:
        raise pytest.UsageError(f"tests marked «vllm» where the Makefile does not look for them: {lost}")
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))


@pytest.fixture(scope="session")
def engine_model() -> Path:
    """The directory of the tiny model (float32), with its tokenizer.json; served as "tiny"."""
    with_vllm()
    return tiny_model("float32")


@pytest.fixture(scope="session")
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Server]]:
    """Two warm vLLM servers with the same model, for the whole session."""
    if running := os.environ.get(RUNNING):
        first, second = (Server(url.strip().rstrip("/")) for url in running.split(","))
        yield first, second
        return
    model = request.getfixturevalue("engine_model")
    fleet = start_fleet(2, model, logs=tmp_path_factory.mktemp("engines"), on_progress=Teller())
    try:
        yield Server(fleet[0].url, fleet[0]), Server(fleet[1].url, fleet[1])
    finally:
        stop_fleet(fleet)


@pytest.fixture(autouse=True)
def revived(request: pytest.FixtureRequest) -> None:
    """Start those of `engines` again that a test before this one has ended, at their addresses."""
    if "engines" in request.fixturenames:
        revive([one.engine for one in request.getfixturevalue("engines") if one.engine is not None])


def revive(engines: Sequence[Engine]) -> None:
    """Have all of these run, whichever of them, or parts of which, are dead; side by side, and warm."""
    dead = [engine for engine in engines if not (engine.alive and engine.healthy())]
    stop_fleet(dead)
    for engine in dead:
        engine.start()
    for engine in dead:
        engine.wait_ready(REVIVED_S_MAX, Teller())


@pytest.fixture
def fresh_engines(engine_model: Path, tmp_path: Path) -> Iterator[FreshEngines]:
    """Starts warm servers of one's own, to be killed: `fresh_engines(2, arguments=[...])`, as for Engine."""
    started: list[Engine] = []

    def start(count: int = 1, **options: Any) -> list[Engine]:
        logs = tmp_path / f"engines-{len(started)}"
        fleet = start_fleet(count, engine_model, logs=logs, on_progress=Teller(), **options)
        started.extend(fleet)
        return fleet

    yield start
    stop_fleet(started)


def with_vllm() -> None:
    """Fail, rather than skip, where there is no vLLM: a check that did not run must not look green."""
    try:
        vllm_python()
    except EngineFailed as missing:
        pytest.fail(str(missing), pytrace=False)


class Teller:
    """Prints each new stage of a starting server once, past pytest's capture."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, note: str) -> None:
        """Tell one stage."""
        if note not in self._told:
            self._told.add(note)
            print(f"\n[{note}]", end="", file=sys.__stderr__, flush=True)
