"""Scenarios that need only what servers answer, on stub upstreams: with the guard each holds, and without it breaks."""

from pathlib import Path
from typing import Any

import pytest

from loadtests import stub_tokenizer
from loadtests.gameday.faults import poison_request, runaway_cost, tenant_flood, token_explosion
from loadtests.gameday.ground import Ground
from loadtests.gameday.score import Verdict, judged
from loadtests.gameday.streams import Clients
from loadtests.processes import StubProcess

pytestmark = [pytest.mark.slow, pytest.mark.prove]

RATE = 60  # tokens per second and stream
ENGINE = '{"seqs_max": 4, "batched_tokens_max": 512}'  # where it is to be slow, and have a queue
SCENARIOS = {
    # the module, its scenario, what is switched off, how the stubs are started
    "token-explosion": (token_explosion, "TokenExplosion", {}, {"tokens_per_s": RATE, "max_model_len": 4096}),
    "runaway-cost": (runaway_cost, "RunawayCost", {"breaker": "off"}, {"tokens_per_s": RATE}),
    "tenant-flood": (tenant_flood, "TenantFlood", {"admission": {"on": False}}, {"engine": ENGINE}),
    "poison-request": (poison_request, "PoisonRequest", {"limits": {"legs": 1}}, {"tokens_per_s": RATE}),
}


class StubFleet:
    """Two stubs in the place of vLLM servers."""

    secret = "a game day's"

    def __init__(self, stubs: list[StubProcess], folder: Path) -> None:
        self.urls = [stub.url for stub in stubs]
        self.tokenizer = stub_tokenizer.write_tokenizer(folder)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_holds_with_its_guard_and_breaks_without(start, tmp_path, monkeypatch, name, guarded):
    """Each verdict can fail: one part of holdfast.yaml is all the difference."""
    module, scenario, off, options = SCENARIOS[name]
    monkeypatch.setattr(module, "END_S_MAX", 60.0 if guarded else 12.0)
    monkeypatch.setattr(runaway_cost, "FIRE_S_MAX", 30.0 if guarded else 8.0)
    # The stub fails what it is told to by a field of its own.
    monkeypatch.setattr(poison_request, "mark", lambda secret: {"stub": {"fault": "status", "status": 500}})
    if not guarded:
        monkeypatch.setattr(module, "GUARDS", off)
    wanted: Any = getattr(module, scenario)
    fleet: Any = StubFleet([start(**options) for _ in range(2)], tmp_path)
    with Clients() as clients:
        ground = Ground(name, 1, tmp_path / "kept", tmp_path, fleet, clients, print)
        with ground.cleanup:
            one = wanted(ground)
            steady = one.steady()
            assert judged(wanted.judge_steady(steady)) is Verdict.HELD, steady
            injected = one.inject()
            probes = wanted.judge(injected, one.observe())
    print(*probes, sep="\n")
    assert judged(probes) is (Verdict.HELD if guarded else Verdict.BROKEN)
