"""A fleet that serves others: broken by its operator's commands, and healed whatever becomes of the scenario."""

import json
from pathlib import Path

import pytest

from loadtests import stub_tokenizer
from loadtests.gameday import on
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.run import Run
from loadtests.gameday.score import Outcome, Verdict
from loadtests.processes import start_stub
from tests.loadtests.gameday.fakes import NoFleet
from tests.processes import ForkedGateway as Gateway

pytestmark = [pytest.mark.slow, pytest.mark.prove]


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A gateway in front of two stubs, in the middle of others' use: (gateway, the stub that serves)."""
    monkeypatch.setattr(on, "TOKENS", 80)
    (tmp_path / "gateway").mkdir()
    tokenizer = stub_tokenizer.write_tokenizer(tmp_path)
    with (
        start_stub(tokens_per_s=40) as first,
        start_stub(tokens_per_s=40) as second,
        Gateway(tmp_path / "gateway", [first.url, second.url], tokenizer=tokenizer) as gateway,
    ):
        monkeypatch.setenv("HOLDFAST_TEST_KEY", gateway.key("gameday", 1_000_000))
        yield gateway, first


def tried(tmp_path: Path, gateway: Gateway, inject: str, heal: str) -> Outcome:
    said = {"url": gateway.url, "model": "stub", "key_env": "HOLDFAST_TEST_KEY",
            "faults": {"engine-kill": {"inject": inject, "heal": heal}}}  # fmt: skip
    (tmp_path / "on.yaml").write_text(json.dumps(said))
    running = on.read(tmp_path / "on.yaml")
    with Run(tmp_path / "report", 1, lambda _: None, on=running, make_fleet=NoFleet) as day:
        return day.scenario(running.scenarios(all_scenarios())["engine-kill"])


def test_streams_outlive_what_the_operators_command_kills(fleet, tmp_path):
    """The fault is the operator's, the streams are ours; then it is healed."""
    gateway, serving = fleet

    outcome = tried(tmp_path, gateway, f"kill -9 {serving.process.pid}", f"touch {tmp_path}/healed")

    assert outcome.verdict is Verdict.HELD, (outcome.why, outcome.probes)
    assert (tmp_path / "healed").exists()


@pytest.mark.parametrize(
    ("inject", "verdict", "why"),
    [
        ("echo no such host >&2; false", Verdict.FAILED, "«inject of engine-kill» ended with status 1"),
        ("true", Verdict.FAILED, "no stream was cut"),
    ],
)
def test_a_command_that_breaks_nothing_proves_nothing(fleet, tmp_path, inject, verdict, why):
    """Whether it says so or not; what heals is run all the same."""
    gateway, _ = fleet

    outcome = tried(tmp_path, gateway, inject, f"touch {tmp_path}/healed")

    assert outcome.verdict is verdict
    assert why in outcome.why
    assert "no such host" not in outcome.why
    assert (tmp_path / "healed").exists()


def test_what_could_not_be_healed_is_no_pass(fleet, tmp_path):
    """The operator is told, since the fleet is broken still."""
    gateway, serving = fleet

    outcome = tried(tmp_path, gateway, f"kill -9 {serving.process.pid}", "echo gpu-1 is gone >&2; exit 3")

    assert outcome.verdict is Verdict.FAILED
    assert "«heal of engine-kill» ended with status 3; what it said is in heal.log" in outcome.why
    assert (tmp_path / "report" / "engine-kill" / "heal.log").read_text() == "gpu-1 is gone\n"
