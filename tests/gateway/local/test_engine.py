"""Engines end when they are told to, when their owner ends however it ends, and say why when they cannot start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import OpenAI

from gateway.local.engine import (
    MODEL_S_MAX,
    MODEL_SCRIPT,
    Engine,
    EngineFailed,
    start_fleet,
    stop_fleet,
    vllm_environment,
    vllm_python,
)
from gateway.local.leashed import group
from tests.conftest import SERVED_NAME, Server

FAKE = [sys.executable, str(Path(__file__).with_name("fake_server.py")), "{port}"]
OWNER = """
import sys, time
from pathlib import Path
from gateway.local.engine import Engine
engine = Engine(Path("model"), log=Path(sys.argv[1]), command=sys.argv[2:]).start().wait_ready()
print(engine.pid, flush=True)
time.sleep(600)
"""


def fake(folder: Path, *options: str) -> Engine:
    return Engine(Path("model"), log=folder / "engine.log", command=[*FAKE, *options])


def gone(group_id: int, within_s: float = 5.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while group(group_id):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_kill_ends_the_whole_group(tmp_path: Path) -> None:
    """SIGKILL reaches the children of the server too."""
    with fake(tmp_path) as engine:
        engine.wait_ready()
        assert engine.core_pid != engine.pid

        engine.kill()

        assert engine.wait_dead(5)
        assert not engine.alive
        assert not engine.processes()


def test_kill_minus_nine_of_the_owner_leaves_nothing(tmp_path: Path) -> None:
    """The engine dies with the process that started it, although nobody could clean up."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "log"), *FAKE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        group_id = int(owner.stdout.readline())
        assert group(group_id)

        owner.kill()

    assert gone(group_id)


def test_kill_minus_nine_of_the_owner_ends_a_stopped_engine(tmp_path: Path) -> None:
    """A group under SIGSTOP cannot watch its owner; the leash can."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "log"), *FAKE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        group_id = int(owner.stdout.readline())
        os.killpg(group_id, signal.SIGSTOP)

        owner.kill()

    assert gone(group_id)


def test_death_of_the_server_takes_its_children_along(tmp_path: Path) -> None:
    """When only the API server is killed, no EngineCore stays behind."""
    with fake(tmp_path) as engine:
        engine.wait_ready()

        os.kill(engine.pid, signal.SIGKILL)

        assert engine.wait_dead(5)


def test_child_that_left_the_group_is_found(tmp_path: Path) -> None:
    """A session of its own is no escape."""
    engine = fake(tmp_path, "--escapes").start().wait_ready()
    escaped = int(engine.log.read_text().split()[1])
    assert group(escaped)

    engine.stop()

    assert gone(escaped)


def test_stop_ends_a_server_that_ignores_sigterm(tmp_path: Path) -> None:
    """Politeness has a limit. Stopping twice is harmless."""
    engine = Engine(Path("model"), log=tmp_path / "log", command=[*FAKE, "--deaf"], polite_s_max=0.1)
    engine.start().wait_ready()

    engine.stop()
    engine.stop()

    assert not engine.processes()


def test_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    """What the server said last is what the developer has to know."""
    with fake(tmp_path, "--dies") as engine, pytest.raises(EngineFailed, match="the reason for the failure"):
        engine.wait_ready()


def test_missing_program_is_a_failed_start(tmp_path: Path) -> None:
    """A command that is not there is reported, not waited for."""
    engine = Engine(Path("model"), log=tmp_path / "log", command=["/nowhere/python"])

    with pytest.raises(EngineFailed, match="/nowhere/python"):
        engine.start()


def test_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """Waiting is bounded."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        Engine(Path("model"), log=tmp_path / "log", command=sleeper) as engine,
        pytest.raises(EngineFailed, match="not healthy after"),
    ):
        engine.wait_ready(timeout_s=0.3)


def test_fleet_starts_on_ports_of_its_own_and_tells_its_progress(tmp_path: Path) -> None:
    """Engines of a fleet do not collide, and one that can be waited for is warm."""
    said: list[str] = []
    fleet = start_fleet(2, Path("model"), logs=tmp_path, command=FAKE, on_progress=said.append)
    try:
        assert len({engine.port for engine in fleet}) == 2
        assert all(any("ready" in line and engine.address in line for line in said) for engine in fleet)
    finally:
        stop_fleet(fleet)
    assert not any(engine.processes() for engine in fleet)


def test_fleet_of_which_one_fails_leaves_none(tmp_path: Path) -> None:
    """A half fleet is not handed out, nor left running."""
    with pytest.raises(EngineFailed):
        start_fleet(2, Path("model"), logs=tmp_path, command=[*FAKE, "--dies"])


def test_missing_vllm_environment_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which command makes it."""
    monkeypatch.setenv("HOLDFAST_VLLM_PYTHON", str(tmp_path / "python"))

    with pytest.raises(EngineFailed, match="make install"):
        vllm_python()


def test_an_engine_keeps_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever our own Python was told, one start of vLLM is not as slow as the first."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("HOLDFAST_TEST", "1")

    assert vllm_environment().keys() & {"PYTHONDONTWRITEBYTECODE", "HOLDFAST_TEST"} == {"HOLDFAST_TEST"}


@pytest.mark.vllm
@pytest.mark.prove
def test_tiny_model_is_the_same_every_time(tmp_path: Path) -> None:
    """Same seed, same sources: the same bytes."""
    building = [subprocess.Popen([vllm_python(), MODEL_SCRIPT, tmp_path / name]) for name in ("first", "second")]
    assert [one.wait(MODEL_S_MAX) for one in building] == [0, 0]

    for file in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.vllm
def test_two_servers_give_the_same_answer(engines: tuple[Server, Server]) -> None:
    """Same model, same precision: what one began, the other can continue."""
    answers = set()
    for server in engines:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        done = client.completions.create(model=SERVED_NAME, prompt="def main", temperature=0, max_tokens=64)
        answers.add(done.choices[0].text)

    assert len(answers) == 1
