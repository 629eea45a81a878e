"""The gateway as compose.yaml and the unit of systemd run it: read-only root, no capability, one folder to write."""

import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.processes import start_stub
from tests.processes import Gateway
from tests.scenarios.asking import ask, chat, order

ALONE = ("unshare", "--mount")
CONFINED = """
mount --make-rprivate /
mount --bind "$0" "$0"
mount -o remount,bind,ro /
if touch /holdfast-was-here 2>/dev/null; then echo the root can be written; exit 9; fi
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def may_mount() -> bool:
    """Whether this user may have a view of its own of the file system."""
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, timeout=30, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="unshare --mount is not allowed here")
async def test_a_read_only_root_and_no_capability_are_enough(tmp_path: Path):
    """It starts, serves, and ends in order; all that it writes is in its data directory."""
    command = (*ALONE, "sh", "-euc", CONFINED, str(tmp_path), sys.executable, "-m", "gateway")
    (tmp_path / "data").mkdir(mode=0o700)
    with start_stub() as stub, Gateway(tmp_path, [stub.url], command=command) as gateway:
        seen = await ask(gateway, gateway.key("somebody", 1000), chat(order(tokens=20)))
        assert gateway.stop() == 0

    assert seen.done
    assert (tmp_path / "data" / "journal.jsonl").stat().st_size > 0
