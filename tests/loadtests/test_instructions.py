"""Instructions of gateways, counted by valgrind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.bench.instructions import SUMMARY

ROOT = Path(__file__).resolve().parents[2]


def test_the_sum_of_a_dump_is_read():
    """From a file as callgrind writes it, of one thread or of all."""
    dump = "version: 1\ncreator: callgrind-3.19.0\npart: 2\nevents: Ir\nsummary: 1234567\n\nfn=(1) f\n12 34\n"

    assert SUMMARY.findall(dump) == ["1234567"]


@pytest.mark.slow
@pytest.mark.prove
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_an_answer_and_a_chunk_of_a_relay_are_counted(tmp_path: Path):
    """The least that Python can cost: some twenty thousand for an answer, and a part of that for a chunk."""
    out = tmp_path / "counted.json"
    command = [sys.executable, "-m", "loadtests.bench.instructions", "--peers", "relay", f"--json={out}"]

    subprocess.run([*command, f"--report={tmp_path / 'counted.md'}"], cwd=ROOT, check=True, timeout=300)

    one = json.loads(out.read_bytes())["counted"]["relay"]
    assert 10_000 < one["plain"] < 60_000
    assert 2_000 < one["chunk"] < one["plain"]
    assert "| relay |" in (tmp_path / "counted.md").read_text()
