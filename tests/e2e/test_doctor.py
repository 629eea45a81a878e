"""`holdfast doctor` in front of real vLLM servers: what it reads of them is what they say."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from gateway.local.engine import Engine
from tests.e2e.test_pages import TRANSFER
from tests.processes import HOLDFAST, ROOT
from tests.vllm_plugin.real.engine import installed

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

DOCTOR_S_MAX = 120.0


def looked(folder: Path, urls: list[str], key: str | None = None) -> tuple[int, dict[str, set[str]]]:
    """Its exit status, and what it says of each server or model."""
    replicas = [{"url": url, **({"key": key} if key else {})} for url in urls]
    patient = {"connect_s": 10, "probe_s": 30}
    file = folder / "holdfast.yaml"
    models = [{"name": "tiny", "replicas": replicas}]
    file.write_text(json.dumps({"models": models, "data": str(folder), "timeouts": patient}))
    done = subprocess.run(
        [HOLDFAST, "doctor", "--config", file, "--json"], cwd=ROOT, capture_output=True, text=True,
        timeout=DOCTOR_S_MAX, check=False,
    )  # fmt: skip
    found: dict[str, set[str]] = {}
    for one in json.loads(done.stdout)["findings"]:
        found.setdefault(one["about"], set()).add(f"{one['level']} {one['said']}")
    return done.returncode, found


def test_two_servers_that_are_alike_are_said_to_be(engines, tmp_path):
    """Their version, their model, that nobody reaches them from elsewhere, and that they are one as the other."""
    status, found = looked(tmp_path, [one.url for one in engines])

    for one in engines:
        said = found[one.address]
        assert "ok serves tiny (4096 tokens)" in said
        assert "ok asks for no key, and listens on loopback only" in said
        assert any("vLLM 0." in line for line in said)
        assert any(line.startswith("warn has no Holdfast plugin") for line in said)
        assert not any("developers" in line or "clock" in line for line in said)
    (alike,) = (line for line in found["tiny"] if "alike" in line)
    assert alike.startswith("ok 2 servers are alike: tokenizer")
    assert status == 0


@pytest.mark.prove
def test_a_server_with_a_key_and_the_plugin_is_seen_as_it_was_started(engine_model, tmp_path):
    """Guarded by the plugin; its key guards /v1, and not vLLM's routes for developers."""
    installed(tmp_path / "installed")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), str(ROOT)]),
        "VLLM_PLUGINS": "holdfast", "VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": "sesame",
    }  # fmt: skip
    arguments = ["--kv-transfer-config", json.dumps(TRANSFER), "--num-gpu-blocks-override", "64"]
    log = tmp_path / "vllm.log"
    with Engine(engine_model, log=log, arguments=arguments, environment=environment) as engine:
        ready(engine)
        status, found = looked(tmp_path, [engine.url], "sesame")
        stranger, without = looked(tmp_path, [engine.url])

    said = found[engine.address]
    assert "ok serves tiny (4096 tokens)" in said
    assert "ok refuses whoever has no key, and listens on 127.0.0.1" in said or "ok refuses whoever has no key" in said
    assert any(line.startswith("ok Holdfast's plugin") for line in said)
    assert any(line.startswith("warn has vLLM's routes for developers, open without a key") for line in said)
    assert status == 0
    assert "bad asks for a key, and none is configured" in without[engine.address]
    assert stranger == 1


def ready(engine: Engine) -> None:
    """Wait until it is healthy; no token is needed, and its warm-up would need its key."""
    from tests.processes import until

    def healthy() -> bool:
        assert engine.alive, engine.log.read_text()[-3000:]
        return engine.healthy()

    until(healthy, 240.0)
