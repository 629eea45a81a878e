"""All faults that the gateway must survive, on stub upstreams in the servers' place: each scenario holds, and each is
broken where a guard is taken out.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.local.engine import Engine
from loadtests import stub_tokenizer
from loadtests.gameday import networks
from loadtests.gameday.fleet import Fleet
from loadtests.gameday.ground import Ground
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.run import Run
from loadtests.gameday.scenario import Scenario
from loadtests.gameday.score import Verdict
from loadtests.gateway_process import Gateway
from tests.loadtests.gameday import unguarded
from tests.processes import ROOT
from tests.redis_servers import redis_server

pytestmark = [pytest.mark.slow, pytest.mark.prove]

NAMES = ("gateway-kill", "disk-full", "redis-loss", "network-cut", "engine-hang", "engine-kill")
PER_S = 40  # tokens of each stream: three seconds, in which the fault falls


class StubEngine(Engine):
    """A stub, which computes in the process that answers."""

    @property
    def core_pid(self) -> int:
        return self.pid


class StubFleet(Fleet):
    """Two stubs."""

    @property
    def tokenizer(self) -> Path:
        return stub_tokenizer.write_tokenizer(self.folder)

    @staticmethod
    def lacking() -> str:
        return ""

    def _start(self) -> None:
        command = [sys.executable, "-m", "loadtests.stub_upstream", "--port", "{port}", "--model", "tiny"]
        command += ["--tokens-per-s", str(PER_S)]
        self.engines = [
            StubEngine(ROOT, log=self.folder / f"stub-{n}.log", command=command, environment={"PYTHONPATH": str(ROOT)})
            for n in range(2)
        ]
        for engine in self.engines:
            engine.start()
        for engine in self.engines:
            engine.wait_ready()


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A run whose servers are stubs, for all of these."""
    folder = tmp_path_factory.mktemp("gameday")
    os.environ["HOLDFAST_REDIS_SERVER"] = redis_server()
    with Run(folder, 4, lambda _: None, make_fleet=StubFleet) as run:
        yield run
    assert run.left == []


@pytest.mark.parametrize("name", NAMES)
def test_a_gateway_that_is_well_survives(day, name):
    """The fault hits running streams, all probes hold, and the evidence is kept."""
    outcome = day.scenario(named(name))

    assert outcome.verdict is Verdict.HELD, (outcome.why, outcome.probes)
    assert {f"{name}/gateway-1/gateway.log", "fleet/stub-0.log", "fleet/stub-1.log"} <= set(outcome.evidence)
    assert all(probe.tried for probe in outcome.probes)


ALONE: dict[str, Any] = {"limits": {"legs": 1, "hedges": 0}}  # no second server, not even beside a silent one
OFF: dict[str, dict[str, Any]] = {
    # in holdfast.yaml, where no function of the gateway's is taken out instead
    "engine-kill": ALONE, "engine-hang": ALONE, "network-cut": ALONE,
    "redis-loss": {"ledger": {}},  # each gateway has one of its own
}  # fmt: skip
LOST = {
    # what of the scenario tells that its guard is not there
    **dict.fromkeys(("engine-kill", "engine-hang", "network-cut"), "a stream equals its uninterrupted run"),
    "redis-loss": "waited in vain for both gateways to refuse",
    "gateway-kill": "nothing of a key stays held",
    "disk-full": "the ledger has charged what the journal says",
}


@pytest.mark.parametrize("name", NAMES)
def test_without_its_guard_a_fault_is_not_survived(day, name, monkeypatch):
    """One setting, or one function of the gateway's, is all the difference."""
    wanted = named(name)
    made = Ground.gateway
    program = {"command": (sys.executable, unguarded.__file__, name)} if name in unguarded.WITHOUT else {}

    def gateway(self: Ground, *at: Any, **more: Any) -> Gateway:
        return made(self, *at, **more | OFF.get(name, {}) | program)

    monkeypatch.setattr(Ground, "gateway", gateway)

    # Under a name of its own, for the day's folders.
    outcome = day.scenario(type("Unguarded", (wanted,), {"name": f"{name}-unguarded"}))

    told = [outcome.why, *(probe.name for probe in outcome.probes if not probe.holds)]
    assert outcome.verdict is Verdict.BROKEN, told
    assert any(LOST[name] in one for one in told), told


def named(name: str) -> type[Scenario]:
    """The scenario; skips where this kernel lets nobody make networks."""
    if name == "network-cut" and (why := networks.lacking()):
        pytest.skip(why)
    return all_scenarios()[name]
