"""Real vLLM servers with Holdfast's plugin, whether it is installed in their environment or not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).resolve().parents[2] / "vllm_plugin"


def installed(folder: Path) -> Path:
    """A folder that makes the plugin's entry points known as an installed distribution would."""
    about = folder / "holdfast-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: holdfast\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nholdfast = vllm_plugin.register:register\n"
        "[vllm.endpoint_plugins]\nholdfast = vllm_plugin.endpoint:HoldfastEndpoint\n"
    )
    return folder


def linked(folder: Path, *packages: Path) -> Path:
    """The same with the plugin itself, and other packages: links, so that nothing else of where they lie is found."""
    installed(folder)
    for package in (PLUGIN, *packages):
        (folder / package.name).symlink_to(package, target_is_directory=True)
    return folder


def plugin_arguments(store: str | None, block_tokens: int, more: Mapping[str, Any] | None = None) -> Sequence[str]:
    """What vLLM must be told so that its pages are watched. store: URL of a page store; more: the plugin's options."""
    extra = ({} if store is None else {"store": store}) | dict(more or {})
    transfer = {
        "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }  # fmt: skip
    return (
        "--no-async-scheduling", "--block-size", str(block_tokens), "--kv-transfer-config", json.dumps(transfer),
    )  # fmt: skip
