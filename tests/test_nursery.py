"""The nursery: what is forked there behaves as if it had been executed."""

import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests import nursery
from tests.processes import HOLDFAST


@pytest.mark.parametrize("arguments", [["version"], ["check", "/nowhere.yaml"], ["keys"], ["keys", "frobnicate"]])
def test_a_command_says_and_ends_as_the_executed_one(arguments: list[str]) -> None:
    """Standard output, standard error and exit status."""
    executed = subprocess.run([HOLDFAST, *arguments], capture_output=True, text=True, check=False)

    try:
        forked = (0, nursery.run(arguments, 30.0), "")
    except subprocess.CalledProcessError as error:
        forked = (error.returncode, error.stdout, error.stderr)

    assert forked == (executed.returncode, executed.stdout, executed.stderr)
    assert executed.stdout or executed.stderr


def test_a_command_has_the_environment_of_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what was there when the nursery began."""
    file = tmp_path / "holdfast.yaml"
    file.write_text("upstreams: [{url: '${NURSERY_URL}'}]")
    with pytest.raises(subprocess.CalledProcessError, match="non-zero") as without:
        nursery.run(["check", str(file)], 30.0)
    monkeypatch.setenv("NURSERY_URL", "http://127.0.0.1:1")

    assert "NURSERY_URL" in without.value.stderr
    assert nursery.run(["check", str(file)], 30.0)


def test_a_command_is_killed_and_waited_for(tmp_path: Path) -> None:
    """By a signal to its number, which is that of its group and session too; the next one has nothing of it."""
    arguments = ["serve", "--upstream", "http://127.0.0.1:1", "--port", "0", "--admin-port", "0", f"--data={tmp_path}"]
    with TemporaryFile() as log:
        child = nursery.begin(arguments, log, log)
        running = child.poll()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        ids = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[2:4]

        child.send_signal(signal.SIGKILL)

    assert (running, child.wait(10.0), child.poll()) == (None, -signal.SIGKILL, -signal.SIGKILL)
    assert ids == [str(child.pid)] * 2
    child.send_signal(signal.SIGKILL)  # nobody
