"""vLLM's own server in its own processes, with the plugin found as an installed one is: metrics, and errors as told."""

import json
import os
import threading
import urllib.error
import urllib.request

import pytest

from gateway.local.engine import Engine as Server
from gateway.local.engine import tiny_model
from tests.vllm_plugin.real import injector
from tests.vllm_plugin.real.engine import REPOSITORY, installed

pytestmark = pytest.mark.prove
TRANSFER = {
    "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
    "kv_connector_extra_config": {"scrub": "all", "on_corruption": "abort"},
}  # fmt: skip
PROMPT = [100 + 7 * i % 5000 for i in range(300)]


def server(folder, transfer) -> Server:
    (folder / "secret").write_text("a test's")
    return Server(
        tiny_model(),
        log=folder / "vllm.log",
        arguments=[
            "--kv-transfer-config", json.dumps(transfer), "--num-gpu-blocks-override", "64",
            "--worker-extension-cls", "tests.vllm_plugin.real.injector.Injector",
        ],
        environment={
            "PYTHONPATH": os.pathsep.join([str(installed(folder / "installed")), str(REPOSITORY)]),
            injector.SECRET_FILE: str(folder / "secret"), "VLLM_SERVER_DEV_MODE": "1",
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    engine = server(tmp_path_factory.mktemp("server"), TRANSFER)
    with engine:
        engine.wait_ready()
        yield engine.url


def post(url: str, path: str, body: dict) -> str:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def complete(url: str, tokens: int, **more) -> str:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more
    return post(url, "/v1/completions", body)


def damage_all(url: str) -> None:
    for block in range(1, 20):
        args = ["a test's", "zero", block, 0, 0]
        post(url, "/collective_rpc", {"method": "holdfast_damage", "args": args})


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + "_total{")))


def test_damaged_pages_are_computed_anew_and_counted(url):
    """Over three processes, and seen at /metrics."""
    right = json.loads(complete(url, 8))["choices"][0]["text"]
    assert metric(url, "holdfast_pages_sealed") >= 2
    damage_all(url)
    assert json.loads(complete(url, 8))["choices"][0]["text"] == right
    assert metric(url, "holdfast_pages_corrupt") >= 1
    assert metric(url, "holdfast_pages_evicted") >= 1
    assert metric(url, "holdfast_digest_bytes") > 0


def test_a_request_that_must_not_go_on_ends_with_an_error_and_not_cleanly(url):
    """In the stream, as all errors of vLLM are, and without the whole of its tokens."""
    got: list[str] = []
    asking = threading.Thread(target=lambda: got.append(complete(url, 3000, stream=True)))
    asking.start()
    while metric(url, "vllm:num_requests_running") < 1:
        pass
    damage_all(url)
    asking.join(timeout=60)

    (stream,) = got
    assert '"error"' in stream
    assert '"finish_reason":"length"' not in stream
    assert '"finish_reason":"stop"' not in stream
    assert metric(url, "holdfast_requests_aborted") == 1


def test_what_is_refused_is_said_in_the_log_and_nothing_is_served(tmp_path):
    """A policy under which one bad page would fail its request."""
    engine = server(tmp_path, TRANSFER | {"kv_load_failure_policy": "fail"})
    with engine, pytest.raises(Exception, match="died while starting"):
        engine.wait_ready()
    said = (tmp_path / "vllm.log").read_text()
    assert 'write "kv_load_failure_policy":"recompute"' in said
