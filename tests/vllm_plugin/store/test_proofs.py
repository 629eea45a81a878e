"""The proofs of `make prove` on the page store, with a little of everything: what they claim holds of that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_plugin.store import replay, swaps

ROOT = Path(__file__).parents[3]


def proof(name: str, out: Path, *said: str) -> Any:
    """What a program found, in a process of its own."""
    command = [sys.executable, "-m", f"tests.vllm_plugin.store.{name}", str(out), *said]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_engines_killed_while_they_write_leave_a_whole_store_and_nothing_else(tmp_path):
    """A dozen on LMDB; and on Redis three, and one server. Twenty in another way: test_kills.py."""
    found = proof("kills", tmp_path / "out", "--kills", "12", "--redis", "4")

    lmdb, redis = found["lmdb"], found["redis"]
    before, after = lmdb["before"], lmdb["after"]
    assert lmdb["kills"] >= 12
    assert lmdb["inside"] > 0
    assert lmdb["pages_seen"] > 100
    assert lmdb["wrong"] == redis["wrong"] == []
    assert (after["files"], after["blocks"], after["alone"]) == (before["files"], before["blocks"], True)
    assert after["readers"] <= before["readers"]
    assert after["room"] > 0.9 * before["room"]
    assert redis["kills"] + redis["servers_killed"] == 4
    assert redis["servers_killed"] == 1


def test_a_session_goes_to_both_stores_and_comes_back(tmp_path):
    """How fast is not looked at: all that is loaded is compared with what was saved."""
    found = proof("speed", tmp_path / "out", "--mib", "16", "--rounds", "1")

    assert set(found["pages"]) == {"262144", "2097152"}
    for pages in found["pages"].values():
        assert {"copy", "lmdb load", "lmdb save", "redis load", "redis save"} <= set(pages["seconds"])


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    return swaps.tried()


def test_a_valid_page_in_the_wrong_place_is_refused(cases):
    """Whoever put it there, and to whoever asks next; what is beside it is loaded."""
    assert {one["store"] for one in cases} == {"LMDB", "Redis"}
    assert [one for one in cases if not (one["refused"] and one["again_refused"])] == []


def test_a_page_that_sessions_share_is_there_once():
    """And is found by whoever asks for it again; a store with less room finds fewer."""
    found = replay.replayed(replay.drawn(1, 150))

    assert found["stored"] == found["unique"] < found["of_sessions"] < found["asked"]
    assert found["hit"] == found["hit_possible"] > 0


def test_a_traces_sessions_are_who_goes_on(tmp_path):
    """With the whole prompt of a request before, whose last block was not full."""
    rows = [(0, [0, 1, 2]), (1, [0, 3, 4]), (2, [0, 1, 5, 6]), (3, [0, 3, 7]), (4, [0, 1, 5, 8]), (5, [0, 9])]
    lines = [{"timestamp": at, "input_length": 9, "output_length": 9, "hash_ids": ids} for at, ids in rows]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))

    assert [one.session for one in replay.of_file(file)] == [0, 1, 0, 1, 0, 2]
