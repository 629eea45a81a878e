"""The fingerprint of a tiny model in a real vLLM 0.32, in its worker's own process."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache" / "tiny-model-float32"
TAKES_S_MAX = 120.0

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Everything at once: an engine takes half a minute to start."""
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # whatever tests before this one have set
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("vllm")
    for command in (
        [str(ROOT / "gateway/local/tiny_model.py"), str(MODEL)],
        ["-m", "tests.vllm_plugin.real_worker", str(MODEL), str(folder / "said")],
    ):
        with (folder / "log").open("wb") as log:
            running = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            assert running.wait(TAKES_S_MAX) == 0, (folder / "log").read_text()[-3000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # its engine and worker too, whatever came of them
    found = json.loads((folder / "said").read_text())
    print({name: found["first"][name] for name in ("bytes", "seconds")}, found["watched"])
    return found


def test_vllm_has_all_ways_that_are_watched(said):
    """The list was read in this version."""
    assert said["first"]["absent"] == []


def test_all_weights_of_the_model_are_read(said):
    """Those too that oneDNN has taken: four of each layer, and the two of the vocabulary."""
    forms = said["first"]["forms"]

    assert sum(name.endswith("cpu_linear.handler") for name in forms) == 4 * 4 + 2
    assert forms["model.layers.0.self_attn.qkv_proj.weight"] == "float32 (0,)"
    assert any(name.endswith("cos_sin_cache") for name in forms)
    assert said["first"]["bytes"] > 4 * 7_000_000


def test_its_configs_are_facts(said):
    """Attributes are where they are looked for: only what 0.32 no longer has is absent."""
    absent = [name for text in said["first"]["facts"].values() for name in re.findall(r"'([^']+)': absent", text)]

    assert absent == ["cache_config.calculate_kv_scales", "config"]  # the other is of the draft that there is not
    assert "rope_theta" in said["first"]["facts"]["rope"]


def test_requests_change_nothing(said):
    """Nor does a watchman find anything."""
    assert said["after a request"] == []
    assert said["watched"]["found"] == []


def test_one_bit_is_found_also_where_a_kernel_has_it(said):
    """What oneDNN took is asked for exactly: it is the checkpoint's, bit by bit."""
    assert said["packed like the file"]
    assert said["damaged"] == [["model.embed_tokens.weight"], ["model.layers.2.mlp.down_proj.cpu_linear.handler"], []]


def test_a_reload_is_told_and_brings_the_same(said):
    """So pages of before it may be used again: the fingerprint is of contents."""
    assert said["heard"] == ["Worker.reload_weights: weights, done"]
    assert said["reloaded"] == []


def test_reset_weights_is_told_and_differs(said):
    """They are zeros then, but for what was packed."""
    heard, differs = said["reset"]

    assert heard == ["Worker.reset_weights: weights, done"]
    assert differs > 8
