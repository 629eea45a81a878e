"""The commands of an operator, as processes: what they leave, what they say, and what is told of them."""

import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests.answers import Answer
from loadtests.gameday import on
from loadtests.gameday.on import Command, Commanded
from tests.processes import until

SECRET = "a-password-of-gpu-1"


@pytest.fixture
def command(tmp_path):
    """Make one that runs a line."""
    return lambda line: Command("inject of engine-kill", line, tmp_path / "engine-kill" / "inject.log")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(file: Path) -> int:
    """A process that wrote its id there."""
    return until(lambda: int(file.read_text() or 0) if file.exists() else 0)


def test_what_a_command_leaves_running_is_not_waited_for_and_ends_with_the_scenario(command, tmp_path):
    """It may hold the command's output open."""
    began_s = time.monotonic()
    one = command(f"sleep 600 & echo $! > {tmp_path}/pid")

    one.run()
    pid = started(tmp_path / "pid")

    assert time.monotonic() - began_s < 30
    assert runs(pid)
    one.end()
    until(lambda: not runs(pid))
    one.end()


def test_what_healing_leaves_running_goes_on(command, tmp_path):
    """A server that was started again, say."""
    command(f"sleep 600 & echo $! > {tmp_path}/pid").run_and_leave()

    pid = started(tmp_path / "pid")

    assert runs(pid)
    os.kill(pid, 9)


@pytest.mark.parametrize(
    ("line", "why"),
    [("sleep 600 & echo $! > {pid}; wait", "took more than 2 s"), ("sleep 600 & echo $! > {pid}; exit 3", "status 3"),
     ("sleep 600 & echo $! > {pid}; kill -9 $$", "status 137")],
)  # fmt: skip
def test_of_a_command_that_fails_or_is_late_nothing_goes_on(command, tmp_path, monkeypatch, line, why):
    """Neither its shell nor what that started."""
    monkeypatch.setattr(on, "COMMAND_S_MAX", 2.0)

    with pytest.raises(OSError, match=why):
        command(line.format(pid=tmp_path / "pid")).run()

    pid = started(tmp_path / "pid")
    until(lambda: not runs(pid))


def test_neither_a_command_nor_what_it_says_is_in_a_message(command, tmp_path):
    """There may be secrets in both; its owner finds what it said in a file."""
    with pytest.raises(OSError, match="inject of engine-kill") as failed:
        command(f"echo {SECRET} >&2; false").run()

    log = tmp_path / "engine-kill" / "inject.log"
    assert SECRET not in str(failed.value)
    assert str(failed.value).endswith("ended with status 1; what it said is in inject.log")
    assert log.read_text() == f"{SECRET}\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_journal_has_the_name_of_the_fault_alone(tmp_path):
    """And not its command."""
    fault = on.Fault(inject=f"true {SECRET}", heal=f"true {SECRET}")
    one: Any = Commanded(scene(tmp_path, {"commanded": fault}, [Answer()]))
    one.bodies = []

    told = one.inject()

    one.ground.cleanup.undo()
    assert SECRET not in str(told)
    assert told["command"] == "commanded"


def test_why_no_answer_was_whole_is_told(tmp_path):
    """Such as a key that is not known there."""
    refused = Answer(status=401, error={"code": "invalid_api_key"}, done=True)
    one: Any = Commanded(scene(tmp_path, {}, [refused] * on.STREAMS))

    whole, _ = one.judge_steady(one.steady())

    assert (whole.passed, whole.seen) == (0, "401 invalid_api_key")


def scene(folder: Path, faults: dict[str, on.Fault], answers: list[Answer]) -> Any:
    """A fleet that gives these answers."""
    undo: list[Any] = []
    streams = SimpleNamespace(tokens=on.STREAMS * on.TOKENS, done=True)
    return SimpleNamespace(
        on=SimpleNamespace(url="", model="m", key="", faults=faults),
        clients=SimpleNamespace(ask=lambda *_: answers, begin=lambda *_: streams),
        rng=SimpleNamespace(randrange=lambda *_: 1),
        cleanup=SimpleNamespace(callback=undo.append, undo=lambda: [step() for step in reversed(undo)]),
        folder=folder,
    )
