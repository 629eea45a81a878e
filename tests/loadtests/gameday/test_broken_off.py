"""`holdfast gameday` that is broken off in mid-scenario: nothing of it is left, and the report says what there was."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.processes import start_stub
from tests.loadtests.gameday.fakes import STARTED_FILE
from tests.processes import ROOT, until

pytestmark = [pytest.mark.slow, pytest.mark.prove]

ENDS_S_MAX = 60.0
AT_ONCE_S = 15.0  # on a machine that others use


@pytest.fixture
def begun(tmp_path):
    """One in mid-scenario, with a gateway and streams: (process, the gateway's pid and port, its scratch folder)."""
    with start_stub(tokens_per_s=200) as stub:
        command = [sys.executable, "-m", "tests.loadtests.gameday.fakes", str(tmp_path), stub.url]
        day = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            file = tmp_path / STARTED_FILE
            until(lambda: (file.exists() and file.read_text().count(" ") == 2) or day.poll() is not None, 30.0)
            assert day.poll() is None, day.communicate()[0]
            pid, port, scratch = file.read_text().split()
            yield day, int(pid), int(port), Path(scratch)
            shutil.rmtree(Path(scratch).parent, ignore_errors=True)  # what kill -9 leaves
        finally:
            if day.poll() is None:
                day.kill()
            day.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_it(begun, tmp_path, number):
    """No process, no port, no file but the report; whose exit status tells the signal."""
    day, pid, port, scratch = begun

    began_s = time.monotonic()
    day.send_signal(number)
    said, _ = day.communicate(timeout=ENDS_S_MAX)

    assert time.monotonic() - began_s < AT_ONCE_S  # the gateway need not bring its streams to their ends
    assert day.returncode == 128 + number, said
    assert left(pid, port) == []
    assert not scratch.parent.exists()
    report = json.loads((tmp_path / "report" / "gameday.json").read_text())
    assert (report["asked"], report["held"], report["score"], report["left"]) == (2, 0, None, [])
    assert (tmp_path / "report" / "gameday.html").exists()
    files = {path.relative_to(tmp_path / "report" / "endless") for path in (tmp_path / "report" / "endless").rglob("*")}
    assert {str(path) for path in files} == {
        "gateway-1", "gateway-1/holdfast.yaml", "gateway-1/gateway.log", "gateway-1/data",
        "gateway-1/data/journal.jsonl",
    }  # fmt: skip


def test_kill_9_leaves_no_process_behind(begun):
    """Whoever cannot clean up leaves files, but no process and no port."""
    day, pid, port, _ = begun

    day.kill()
    day.wait(ENDS_S_MAX)

    until(lambda: not alive(pid), 10.0)
    assert left(pid, port) == []


def left(pid: int, port: int) -> list[str]:
    """What there still is of a gateway."""
    with socket.socket() as probe:
        listens = probe.connect_ex(("127.0.0.1", port)) == 0
    return ["its process"] * alive(pid) + ["somebody at its port"] * listens


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
