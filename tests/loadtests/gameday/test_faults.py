"""The faults' own verdicts, from observations alone; networks of one's own; what a scenario lacks."""

import re
import subprocess
import sys
import urllib.request
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests.answers import Answer
from loadtests.gameday import ground, networks
from loadtests.gameday.faults import cut, redis_loss
from loadtests.gameday.faults.cut import Cut, Healed
from loadtests.gameday.faults.disk_full import DiskFull
from loadtests.gameday.faults.gateway_kill import GatewayKill
from loadtests.gameday.faults.redis_loss import RedisLoss, whole_or_named
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.scenario import Missed, Scenario
from loadtests.gameday.score import Verdict, judged
from loadtests.processes import start_stub
from tests.processes import ROOT, until

WELL = [True] * 8
CUT = {
    "equal": WELL, "errors": [""] * 8, "failed_over": 8, "charged_once": WELL, "ledger_is_journal": True,
    "log_faults": [],
}  # fmt: skip
HEALED = CUT | {"equal_after": WELL, "served_after": ["other", "first"], "victim": "first"}
GATEWAY = {
    "received": [50] * 8, "spent": [60] * 8, "held": [0] * 8, "budget": 200, "equal": WELL, "charged_once": WELL,
    "received_in_all": [180] * 8, "spent_in_all": [200] * 8, "facts": 90, "facts_in_order": 90,
    "log_faults": [],
}  # fmt: skip
DISK = {
    "equal": WELL, "errors": [""] * 8, "charged_once": WELL, "refused": [[503, "books_unavailable"]] * 8,
    "equal_after": WELL, "charged_once_after": WELL, "let_in": 1, "ledger_is_journal": True, "log_faults": [],
    "said_why": ["the journal cannot be written"],
}  # fmt: skip
REDIS = {
    "whole_or_named": WELL, "equal_after": WELL, "errors": [""] * 8, "charged_once": WELL,
    "refused": [[503, "books_unavailable"]] * 8, "looks": [[5990, 5980], [6000, 6000]], "budget": 6000,
    "spent_up": True, "said": ["", "budget_exceeded"], "tokens_at_their_ends": 300,
    "ledger_is_journal": [True, True], "log_faults": [],
}  # fmt: skip
SEEN: dict[type[Scenario], tuple[dict, dict]] = {
    Cut: ({}, CUT),
    Healed: ({}, HEALED),
    GatewayKill: ({"cut": 8}, GATEWAY),
    DiskFull: ({"running": 8}, DISK),
    RedisLoss: ({"running": 8, "tokens_before": 200}, REDIS),
}
BAD = [
    (Cut, "equal", [False, *WELL[1:]]),
    (Cut, "charged_once", [False, *WELL[1:]]),
    (Cut, "ledger_is_journal", False),
    (Cut, "log_faults", ["Traceback"]),
    (Healed, "equal_after", [False] * 8),
    (Healed, "served_after", ["other"] * 8),
    (Healed, "served_after", []),
    (GatewayKill, "log_faults", ["Traceback"]),
    (DiskFull, "let_in", 100),
    (DiskFull, "said_why", []),
    (DiskFull, "said_why", ["no server is up"]),
    (DiskFull, "ledger_is_journal", False),
    (DiskFull, "log_faults", ["Traceback"]),
    (GatewayKill, "spent", [49] + [60] * 7),
    (GatewayKill, "spent", [201] + [60] * 7),
    (GatewayKill, "held", [1] + [0] * 7),
    (GatewayKill, "spent_in_all", [201] + [200] * 7),
    (GatewayKill, "received_in_all", [201] + [180] * 7),
    (GatewayKill, "facts_in_order", 89),
    (GatewayKill, "equal", [False, *WELL[1:]]),
    (GatewayKill, "charged_once", [False, *WELL[1:]]),
    (DiskFull, "equal", [False, *WELL[1:]]),
    (DiskFull, "charged_once", [False, *WELL[1:]]),
    (DiskFull, "refused", [[200, ""]] + [[503, "books_unavailable"]] * 7),
    (DiskFull, "equal_after", [False, *WELL[1:]]),
    (DiskFull, "charged_once_after", [False, *WELL[1:]]),
    (RedisLoss, "whole_or_named", [False, *WELL[1:]]),
    (RedisLoss, "equal_after", [False, *WELL[1:]]),
    (RedisLoss, "charged_once", [False, *WELL[1:]]),
    (RedisLoss, "refused", [[429, "rate_limited"]] + [[503, "books_unavailable"]] * 7),
    (RedisLoss, "looks", [[5990, 5980], [6001, 6000]]),
    (RedisLoss, "looks", [[5990, 5980], [5990, 6000]]),
    (RedisLoss, "spent_up", False),
    (RedisLoss, "tokens_at_their_ends", 208),
    (RedisLoss, "ledger_is_journal", [True, False]),
    (RedisLoss, "log_faults", ["Traceback"]),
]


@pytest.mark.parametrize("scenario", SEEN)
def test_what_is_as_promised_holds(scenario):
    """Observations of a fault that was survived are a pass."""
    assert judged(scenario.judge(*SEEN[scenario])) is Verdict.HELD


@pytest.mark.parametrize(("scenario", "name", "value"), BAD, ids=lambda one: getattr(one, "__name__", str(one)))
def test_each_observation_alone_can_break_a_hypothesis(scenario, name, value):
    """One trial that did not hold is enough, and the share says how many did not."""
    injected, seen = SEEN[scenario]

    probes = scenario.judge(injected, seen | {name: value})

    assert judged(probes) is Verdict.BROKEN
    assert sum(not probe.holds for probe in probes) == 1


@pytest.mark.parametrize(
    ("scenario", "injected", "seen"),
    [
        (Cut, {}, CUT | {"failed_over": 0}),
        (Healed, {}, HEALED | {"failed_over": 0}),
        (GatewayKill, {"cut": 0}, GATEWAY),
        (DiskFull, {"running": 0}, DISK),
        (RedisLoss, {"running": 0, "tokens_before": 300}, REDIS),
    ],
)
def test_a_fault_beside_the_streams_proves_nothing(scenario, injected, seen):
    """Streams that had ended before it are equal whatever the gateway does."""
    with pytest.raises(Missed):
        scenario.judge(injected, seen)


@pytest.mark.parametrize(
    ("scenario", "injected", "seen"),
    [
        (Cut, {}, CUT | {"failed_over": 0, "charged_once": [False] * 8}),
        (Healed, {}, HEALED | {"failed_over": 0, "served_after": []}),
        (GatewayKill, {"cut": 0}, GATEWAY | {"held": [1] * 8}),
        (DiskFull, {"running": 0}, DISK | {"refused": [[200, ""]] * 8}),
        (RedisLoss, {"running": 0, "tokens_before": 200}, REDIS | {"looks": [[6001, 6000]]}),
    ],
)
def test_a_fault_beside_the_streams_hides_no_failure(scenario, injected, seen):
    """What did not hold all the same is in the score."""
    assert judged(scenario.judge(injected, seen)) is Verdict.BROKEN


def test_streams_that_broke_off_are_no_miss():
    """A gateway that does not fail over at all says `failed_over: 0`, too."""
    probes = Cut.judge({}, CUT | {"failed_over": 0, "equal": [False] * 8, "errors": ["replica_lost"] * 8})

    assert probes[0].passed == 0
    assert probes[0].seen == "replica_lost"


def test_a_part_of_an_answer_must_say_why_it_ends():
    """And hold nothing that the whole one has not."""
    whole = Answer(ids=[[1, 2, 3]], text=["abc"], finish=["length"], stop_reason=[None], done=True)
    part = Answer(ids=[[1, 2]], text=["ab"], finish=[None], stop_reason=[None])

    assert whole_or_named(whole, replace(whole))
    assert whole_or_named(whole, replace(part, error={"code": "books_unavailable"}))
    assert not whole_or_named(whole, part)
    assert not whole_or_named(whole, replace(part, error={"code": "connection"}))
    assert not whole_or_named(whole, replace(part, ids=[[1, 3]], error={"code": "books_unavailable"}))


class Fleet(Healed):
    """A healed server that answers the third single request; before that all goes to another one."""

    name, title, weight, why = "healed", "a fault that is healed", 1, "for tests"

    def __init__(self, served: list[str]) -> None:
        asked = iter(served)
        self.bodies, self.wanted, self.key, self.replica = [{}], [Answer()], "", "first"
        self.streams = SimpleNamespace(wait=lambda: [Answer()])
        self.gateway = SimpleNamespace(url="", metrics=lambda: {"holdfast_replica_up": 1.0}, faults=lambda: [])
        self.ground = SimpleNamespace(clients=SimpleNamespace(ask=lambda *_: [Answer(replica=next(asked))]))

    def hurt(self, victim: Any) -> str:
        return ""

    def heal(self) -> None:
        pass


def test_a_healed_server_is_waited_for_until_it_answers(monkeypatch):
    """All eight streams may be won by another server on a busy machine; one of some further requests is not."""
    monkeypatch.setattr(cut, "booked", lambda *_: True)
    monkeypatch.setattr(cut, "charged", lambda *_: [True])

    seen = Fleet(["other", "other", "first", "never asked"]).observe()

    assert (seen["served_after"], seen["victim"]) == (["other", "other", "first"], "first")


def test_without_redis_its_loss_is_not_tried(monkeypatch):
    """It says what is missing, and starts nothing."""
    monkeypatch.setattr(redis_loss, "redis_server", lambda: None)

    assert "no redis-server" in RedisLoss(None).lacking()


@pytest.mark.parametrize(
    ("tools", "why"), [(("no-such-tool",), "no-such-tool is missing"), (networks.TOOLS, "are not allowed here: ")]
)
def test_without_namespaces_a_network_is_not_cut(monkeypatch, tools, why):
    """Where they are not installed, or not allowed."""
    refused = subprocess.CompletedProcess([], 1, "", "Operation not permitted")
    monkeypatch.setattr(networks, "TOOLS", tools)
    monkeypatch.setattr(networks.subprocess, "run", lambda *_, **__: refused)
    monkeypatch.setattr(networks.shutil, "which", lambda tool: None if tool == "no-such-tool" else tool)

    assert why in networks.lacking()


@pytest.mark.slow
def test_a_pulled_cable_lets_nothing_through_and_leaves_no_trace(tmp_path):
    """A server at its end is reached, then not, then again; this machine's own interfaces stay as they were."""
    if why := networks.lacking():
        pytest.skip(why)
    before = set(networks.Path("/sys/class/net").iterdir())
    with start_stub() as first, start_stub() as second:
        address = f"127.0.0.1:{first.port}"
        with networks.Networks(tmp_path / "n", address, f"127.0.0.1:{second.port}") as cabled:

            def health() -> int:
                look = f"import urllib.request as r; r.urlopen('{cabled.url}/health', timeout=2)"
                command = [*cabled.command, sys.executable, "-c", look]
                return subprocess.run(command, check=False, capture_output=True).returncode

            until(lambda: health() == 0, 20.0)
            cabled.pull()
            pulled = health()
            with urllib.request.urlopen(f"http://{address}/health") as itself:
                assert itself.status == 200
            cabled.plug()
            until(lambda: health() == 0, 20.0)

            assert pulled != 0
            processes = [one.processes() for one in cabled._started]
            assert all(processes)
    assert not any(networks.Path(f"/proc/{one.pid}").exists() for group in processes for one in group)
    assert set(networks.Path("/sys/class/net").iterdir()) == before


def test_all_names_are_as_people_type_them():
    """Small letters and dashes, and each of its own."""
    assert all(name.replace("-", "").isalpha() and name.islower() for name in all_scenarios())


def test_the_document_tells_every_scenario():
    """A row for each, by the name that the command line takes."""
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "gameday.md").read_text("utf-8"), re.MULTILINE)

    assert sorted(rows) == sorted(all_scenarios())


class Books:
    """A gateway's: what its ledger says of a key, look by look, and what its journal has settled."""

    def __init__(self, spent: list[int], held: list[int], settled: list[int]) -> None:
        self._looks = [SimpleNamespace(spent=s, held=h) for s, h in zip(spent, held, strict=True)]
        self._settled = settled

    def balance(self, _: str) -> SimpleNamespace:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]

    def settlements(self, _: str) -> list[dict[str, int]]:
        return [{"charged_tokens": tokens} for tokens in self._settled]


@pytest.mark.parametrize(
    ("books", "alike"),
    [
        (Books([30], [0], [10, 20]), True),
        (Books([10, 30], [20, 0], [10, 20]), True),
        (Books([60], [0], [10, 20]), False),
        (Books([30], [1], [10, 20]), False),
    ],
    ids=["as told", "a moment later", "charged twice", "still held"],
)
def test_a_ledger_that_charges_otherwise_than_the_journal_is_seen(monkeypatch, books, alike):
    """Though each settlement in the journal is right."""
    monkeypatch.setattr(ground, "until", partial(until, seconds=0.1))

    assert ground.booked(books, "key") is alike
