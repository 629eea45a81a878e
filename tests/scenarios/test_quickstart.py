"""The README's quickstart, line by line, in front of two servers that run already."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.local.ports import free_ports
from loadtests.processes import start_stub
from tests.readme import ROOT, commands

pytestmark = pytest.mark.slow

ELSEWHERE = (  # shown by `make demo`, tests/package/test_built.py
    "make demo\n", "python3 -m venv holdfast-env && . holdfast-env/bin/activate\n", "pip install .\n",
)  # fmt: skip
PASTED_S_MAX = 60.0
SETTINGS = "set -euo pipefail\ntrap 'kill $(jobs -p); wait' EXIT\n"


def test_what_the_quickstart_says_works_when_it_is_pasted(tmp_path: Path):
    """Ready, keys, an answer to its end, a budget, and what was spent; ports are others, and it is installed."""
    script = commands("Quickstart")
    for line in ELSEWHERE:
        assert script.count(line) == 1
        script = script.replace(line, "")
    port, admin_port = free_ports(2)
    with start_stub() as one, start_stub() as other:
        for number, mine in ((8000, one.port), (8001, other.port), (8080, port)):
            script = script.replace(f"127.0.0.1:{number}", f"127.0.0.1:{mine}")
        script = script.replace("holdfast serve", f"holdfast serve --port {port} --admin-port {admin_port}")
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

        ran = subprocess.run(
            ["bash", "-c", SETTINGS + script], cwd=tmp_path, env=env, capture_output=True, text=True,
            timeout=PASTED_S_MAX, check=False,
        )  # fmt: skip

    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    assert ran.stdout.count("data: [DONE]") == 1
    assert re.search(r"alice\b", ran.stdout)
    assert "org:acme" in ran.stdout.partition("[DONE]")[2]
    assert not re.search("8000|8001|8080", script)
