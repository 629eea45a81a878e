"""Real vLLM servers with the plugin, which share a page store in shared memory."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.local.engine import READY_S_MAX, Engine, start_fleet, stop_fleet
from tests.processes import ROOT
from tests.vllm_plugin.real.engine import installed

BLOCK = 32  # tokens of a page


@contextmanager
def stored_fleet(
    model: Path,
    folder: Path,
    count: int = 2,
    *,
    arguments: Sequence[str] = (),
    size: str = "256MiB",
    on_progress: Callable[[str], None] | None = None,
    root: Path = ROOT,
    timeout_s: float = READY_S_MAX,
) -> Iterator[list[Engine]]:
    """So many, warm; none of them is left, nor is their store. root: whose plugin it is."""
    place = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    store = f"lmdb://{place / 'store'}?size={size}"
    transfer = {
        "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"store": store},
    }  # fmt: skip
    of_vllm = [
        "--kv-transfer-config", json.dumps(transfer), "--no-async-scheduling", "--block-size", str(BLOCK),
        "--enable-prompt-tokens-details", *arguments,
    ]  # fmt: skip
    environment = {
        "PYTHONPATH": os.pathsep.join([str(installed(folder / "installed")), str(root)]),
        "VLLM_PLUGINS": "holdfast",
    }
    fleet: list[Engine] = []
    try:
        fleet = start_fleet(
            count, model, logs=folder, arguments=of_vllm, environment=environment, on_progress=on_progress,
            timeout_s=timeout_s,
        )  # fmt: skip
        yield fleet
    finally:
        stop_fleet(fleet)
        shutil.rmtree(place, ignore_errors=True)
