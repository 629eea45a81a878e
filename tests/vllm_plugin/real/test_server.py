"""vLLM's own server in its own processes, with the plugin found as an installed one is: metrics, errors as told, logs,
and the plugin's own routes.
"""

import contextlib
import json
import os
import threading
import time
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
KEY = "a key of a test"
NORM = "model.layers.1.input_layernorm.weight"
PROMPT = [100 + 7 * i % 5000 for i in range(300)]


def server(folder, transfer) -> Server:
    (folder / "secret").write_text("a test's")
    return Server(
        tiny_model(),
        log=folder / "vllm.log",
        arguments=[
            "--kv-transfer-config", json.dumps(transfer), "--num-gpu-blocks-override", "64",
            "--override-generation-config", json.dumps({"temperature": 0.6}),
            "--api-key", KEY, "--worker-extension-cls", "tests.vllm_plugin.real.injector.Injector",
            "--weight-transfer-config", json.dumps({"backend": "in-place"}),
        ],
        environment={
            "PYTHONPATH": os.pathsep.join([str(with_trainer(installed(folder / "installed"))), str(REPOSITORY)]),
            injector.SECRET_FILE: str(folder / "secret"), "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_PLUGINS": "holdfast,trainer", "HOLDFAST_LOG": "json",
        },
    )  # fmt: skip


def with_trainer(folder):
    """And a plugin of the test's own, which lets vLLM's update routes change weights without a GPU."""
    about = folder / "trainer-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: trainer\nVersion: 0\n")
    lines = ["[vllm.general_plugins]", "trainer = tests.vllm_plugin.real.trainer:register", ""]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def url(folder):
    engine = server(folder, TRANSFER)
    with engine:
        ready(engine)
        yield engine.url


def ready(engine: Server) -> None:
    """Its own warm-up has no key."""
    until_s = time.monotonic() + 240
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(engine.url + "/health", timeout=2).close()
            return
        assert engine.alive, "died while starting"
        time.sleep(0.25)
    raise AssertionError("not ready")


def ask(method: str, url: str, body: dict | None = None, key: str = KEY) -> str:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def post(url: str, path: str, body: dict) -> str:
    return ask("POST", url + path, body)


def status(url: str) -> dict:
    return json.loads(ask("GET", url + "/holdfast/status"))


def complete(url: str, tokens: int, **more) -> str:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more
    return post(url, "/v1/completions", body)


def damage_all(url: str) -> None:
    for block in range(1, 20):
        args = ["a test's", "zero", block, 0, 0]
        post(url, "/collective_rpc", {"method": "holdfast_damage", "args": args})


def metric(url: str, name: str, **labels: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith((name + "{", name + "_total{")) and all(label in line for label in wanted)
    )


def facts(folder, event: str) -> list[dict]:
    """Of the log, those of that name."""
    lines = (folder / "vllm.log").read_text().splitlines()
    found = [json.loads(line[line.index('{"'):]) for line in lines if '{"event": "holdfast' in line]
    return [fact for fact in found if fact["event"] == event]


def test_the_plugins_routes_need_vllms_key(url):
    """Without it nothing is said and nothing done, in the form of OpenAI's errors."""
    for method, path in (("GET", "/holdfast/status"), ("POST", "/holdfast/scrub")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(method, url + path, key="another")
        assert refused.value.code == 401
        assert json.loads(refused.value.read())["error"]["code"] == "invalid_api_key"


def test_the_status_tells_what_requests_are_sampled_with_that_do_not_say(url):
    """As vLLM was told at its start."""
    assert status(url)["sampling_defaults"] == {"temperature": 0.6}


def test_a_scrub_finds_what_nobody_has_hit_yet(url, folder):
    """The next request that would have, computes it anew. The status says what was done; the log, in JSON, what was
    found.
    """
    right = json.loads(complete(url, 8))["choices"][0]["text"]
    before = status(url)
    assert before["pages"]["sealed"] == before["pages"]["resident"] >= 2
    assert json.loads(ask("POST", url + "/holdfast/scrub"))["corrupt"] == 0
    damage_all(url)

    found = json.loads(ask("POST", url + "/holdfast/scrub"))
    assert found["whole"]
    assert found["checked"] == found["corrupt"] == before["pages"]["resident"]
    assert json.loads(ask("POST", url + "/holdfast/scrub")) | {"seconds": 0} == {
        "checked": 0, "corrupt": 0, "seconds": 0, "whole": True,
    }  # fmt: skip
    assert json.loads(complete(url, 8))["choices"][0]["text"] == right

    after = status(url)
    assert after["corrupt"] == [{"kind": "changed", "where": "scrub", "pages": found["corrupt"]}]
    assert after["pages"]["evicted"] == found["corrupt"]
    assert after["protected"]
    assert after["settings"] == {"verify": 1.0, "scrub": None, "on_corruption": "abort", "store": ""}
    assert len(bytes.fromhex(after["fingerprint"])) == 32
    assert after["prefix"]["asked_tokens"] == before["prefix"]["asked_tokens"] + len(PROMPT)
    assert len(facts(folder, "holdfast.page_corrupt")) == found["corrupt"]


def test_what_requests_found_is_counted_by_their_length_and_their_batch(url):
    """At /metrics: the second one finds all but the page that it ends in."""
    asked = [metric(url, "holdfast_prefix_tokens", what=what, input="<=1k", batch="alone") for what in ("asked", "hit")]
    complete(url, 2)
    complete(url, 2)

    now = [metric(url, "holdfast_prefix_tokens", what=what, input="<=1k", batch="alone") for what in ("asked", "hit")]
    assert now[0] - asked[0] == 2 * len(PROMPT)
    assert now[1] - asked[1] >= 256


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


def test_the_update_routes_leave_no_page_of_the_weights_of_before(url):
    """As a trainer calls them: the next answer is that of a model which never had other weights. So is the way back."""
    post(url, "/reset_prefix_cache", {})
    first, before = answer(url), status(url)
    assert answer(url) == first
    post(url, "/init_weight_transfer_engine", {"init_info": {}})
    for factor in (8.0, 1 / 8):
        update(url, factor)
        after = answer(url)
        told = status(url)
        post(url, "/reset_prefix_cache", {})
        assert answer(url) == after
        assert (after != first) == (factor > 1)
        assert (told["fingerprint"] != before["fingerprint"]) == (factor > 1)
        assert told["weights"]["changes"] > before["weights"]["changes"]
    assert status(url)["corrupt"] == before["corrupt"]


def answer(url: str) -> list[int]:
    (choice,) = json.loads(complete(url, 24, return_token_ids=True))["choices"]
    return choice["token_ids"]


def update(url: str, factor: float) -> None:
    """In two parts."""
    post(url, "/start_weight_update", {})
    for part in (factor * 2, 0.5):
        post(url, "/update_weights", {"update_info": {"factors": {NORM: part}}})
    post(url, "/finish_weight_update", {})
