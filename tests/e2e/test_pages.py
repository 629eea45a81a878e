"""A real vLLM server with the plugin, whose KV pages are damaged: what the gateway in front of it makes of that."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.local.engine import Engine
from tests.e2e.conftest import Proxy
from tests.processes import HOLDFAST, ROOT, Gateway, until
from tests.scenarios.asking import ask
from tests.vllm_plugin.real import injector
from tests.vllm_plugin.real.engine import installed

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.prove]

TRANSFER = {
    "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
    "kv_connector_extra_config": {"scrub": "all"},
}  # fmt: skip
TOLD_S_MAX = 60.0
PAGES_MAX = 2  # there are a few dozen in all


def guarded(model: Path, folder: Path, name: str) -> Engine:
    """A server with the plugin, as if it were installed, and somebody who damages its pages when told to."""
    (folder / "secret").write_text("a test's")
    arguments = ["--kv-transfer-config", json.dumps(TRANSFER), "--num-gpu-blocks-override", "64"]
    arguments += ["--worker-extension-cls", "tests.vllm_plugin.real.injector.Injector"]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder / "installed"), str(ROOT)]),
        "VLLM_PLUGINS": "holdfast", "VLLM_SERVER_DEV_MODE": "1", injector.SECRET_FILE: str(folder / "secret"),
    }  # fmt: skip
    return Engine(model, log=folder / f"{name}.log", arguments=arguments, environment=environment)


def damage_all(engine: Engine) -> None:
    """Zero what is in every block."""
    for block in range(1, 20):
        body = {"method": "holdfast_damage", "args": ["a test's", "zero", block, 0, 0]}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{engine.url}/collective_rpc", json.dumps(body).encode(), headers)
        urllib.request.urlopen(request, timeout=60).close()


async def test_a_server_whose_pages_are_damaged_is_drained_until_it_is_started_anew(engine_model, tmp_path):
    """Its plugin counts them, the gateway drains it, and asks it still, for it is the last one: with the same text.

    The server that is started anew is another one, behind the same address: so both start side by side.
    """
    installed(tmp_path / "installed")
    body = {"model": "tiny", "prompt": [100 + 7 * i % 5000 for i in range(600)], "max_tokens": 8, "temperature": 0}
    with guarded(engine_model, tmp_path, "first") as upstream, guarded(engine_model, tmp_path, "anew") as anew:
        for engine in (upstream, anew):
            engine.wait_ready()
        address = Proxy(upstream)
        integrity = {"ask_every_s": 0.5, "corrupt_pages_max": PAGES_MAX}
        with Gateway(tmp_path, [address.url], model="tiny", integrity=integrity) as gateway:
            key = gateway.key("alice")

            def told(look: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
                def found() -> Any:
                    (one,) = json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])["replicas"]
                    return one if look(one) else None

                one: dict[str, Any] = until(found, TOLD_S_MAX)
                return one

            well = told(lambda one: one["pages"]["plugin"] == "told")
            first = await ask(gateway, key, body, "/v1/completions")
            damage_all(upstream)
            second = await ask(gateway, key, body, "/v1/completions")
            drained = told(lambda one: one["state"] == "drained")
            third = await ask(gateway, key, body, "/v1/completions")
            table = gateway_table(gateway)
            upstream.kill()
            told(lambda one: one["state"] == "down")
            address.lead(anew)
            back = told(lambda one: one["state"] == "up")
            facts = until(lambda: len(found := drains(gateway)) > 1 and found)  # on disk a moment later
            assert gateway.faults() == []
        address.stop()

    assert (well["state"], well["pages"]["protected"], well["pages"]["corrupt"]) == ("up", True, [])
    assert len({one.json["choices"][0]["text"] for one in (first, second, third)}) == 1
    assert drained["pages"]["corrupt_lately"] > PAGES_MAX
    assert drained["pages"]["requests"]["recomputed"] + drained["pages"]["counts"]["evicted"] > 0
    assert "drained" in table
    assert drained["pages"]["fingerprints"][0][:8] in table
    assert (back["drained"], back["pages"]["corrupt_lately"]) == (None, 0)
    assert facts == [True, False]


def drains(gateway: Gateway) -> list[bool]:
    """What the journal tells of draining, and of its end."""
    return [one["drained"] for one in gateway.journal() if one["kind"] == "replica.drained"]


def gateway_table(gateway: Gateway) -> str:
    """What `holdfast replicas` prints."""
    run = [HOLDFAST, "replicas", "--config", gateway.config_file]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
