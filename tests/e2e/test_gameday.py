"""Game days on real vLLM: one fault from hypothesis to verdict, and what is left after Ctrl-C."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.books import journal
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.run import Run
from loadtests.gameday.score import Verdict
from tests.conftest import with_vllm
from tests.processes import ROOT, until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.prove]

DAY_S_MAX = 900.0  # the servers' start included, on a machine that others use
ENDS_S_MAX = 60.0


def begun(report: Path, *names: str) -> "subprocess.Popen[str]":
    """The command, in a session of its own."""
    with_vllm()
    return subprocess.Popen(
        [sys.executable, "-m", "loadtests.gameday", *names, "--seed", "3", "--report", str(report), "--json"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_killed_engine_is_survived_and_nothing_is_left(tmp_path: Path) -> None:
    """The verdict is that it held, the journal has the steps, and no process or file of it lives on."""
    day = begun(tmp_path / "report", "engine-kill")
    with ended(day):
        out, said = day.communicate(timeout=DAY_S_MAX)

    assert day.returncode == 0, said
    found = json.loads(out)
    assert (found["score"]["score"], found["held"], found["left"]) == (100.0, 1, [])
    (one,) = found["scenarios"]
    assert all((tmp_path / "report" / path).is_file() for path in one["evidence"])
    kinds = [fact["kind"] for fact in journal.read(tmp_path / "report" / "gameday.jsonl")]
    assert kinds[:4] == ["gameday.hypothesis", "gameday.steady_state", "gameday.injected", "gameday.observed"]
    assert not leftovers(day.pid)


@pytest.mark.parametrize("moment", ["while servers start", "in mid-scenario"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """No process that it started, no port of theirs, no file in shared memory."""
    file = tmp_path / "report" / "gameday.jsonl"
    day = begun(tmp_path / "report", "engine-hang")
    with ended(day):
        if moment == "in mid-scenario":
            until(lambda: file.exists() and "gameday.injected" in file.read_text(), DAY_S_MAX)
        else:
            until(lambda: any("EngineCore" in name(pid) for pid in family(day.pid)), DAY_S_MAX)
        mine = family(day.pid)
        ports = [port for pid in mine for port in listening(pid)]

        day.send_signal(signal.SIGINT)
        out, said = day.communicate(timeout=ENDS_S_MAX)

    assert day.returncode == 130, said
    assert json.loads(out)["left"] == []
    assert len(mine) > 4
    assert [name(pid) for pid in mine if name(pid)] == []
    assert not [port for port in ports if reached(port)]
    assert not leftovers(day.pid)


UNGUARDED = {
    "page-corruption": ("loadtests.gameday.fleet.ALL", {"scrub": 0, "tails": False}),
    "model-change": ("loadtests.gameday.faults.model_change.BOUND", {"integrity": {"same_fingerprint": False}}),
}


@pytest.mark.parametrize("name", UNGUARDED)
def test_without_its_guard_a_scenario_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Its verdict can fail: one setting is all the difference."""
    with_vllm()
    monkeypatch.setattr(*UNGUARDED[name])

    with Run(tmp_path / "report", 3, print) as run:
        outcome = run.scenario(all_scenarios()[name])

    print(outcome.why, *outcome.probes, sep="\n")
    assert outcome.verdict is Verdict.BROKEN
    assert run.left == []


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    """It is gone after the block, whatever happens in it."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def family(root: int) -> list[int]:
    """Everything that a process started, and what these did."""
    found: list[int] = []
    for task in Path(f"/proc/{root}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for pid in map(int, children):
            found += [pid, *family(pid)] if Path(f"/proc/{pid}/task").exists() else []
    return found


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def listening(pid: int) -> Iterator[int]:
    """The port that a server's command line names."""
    words = name(pid).split()
    yield from (int(words[at + 1]) for at, word in enumerate(words[:-1]) if word == "--port")


def reached(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def leftovers(pid: int) -> list[Path]:
    """What a day of that process has in shared memory."""
    return list(Path("/dev/shm").glob(f"holdfast-gameday-{pid}*"))
