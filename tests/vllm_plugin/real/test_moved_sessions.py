"""Two real vLLM servers with one page store in shared memory: what one has computed the other continues, and a server
that was stopped while its session moved writes nothing into it. Run in order: the last test kills one of them.
"""

import json
import os
import shutil
import signal
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local.engine import Engine as Server
from gateway.local.engine import start_fleet, stop_fleet, tiny_model
from tests.vllm_plugin.real.engine import REPOSITORY, installed
from vllm_plugin.store import open_store

pytestmark = pytest.mark.prove
BLOCK = 32
WAIT_S_MAX = 60.0
PROMPT = [100 + 7 * i % 5000 for i in range(300)]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    place = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    yield f"lmdb://{place / 'store'}?size=64MiB"
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def servers(tmp_path_factory, store) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("servers")
    transfer = {
        "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"store": store},
    }  # fmt: skip
    servers = start_fleet(
        2, tiny_model(), logs=folder,
        arguments=[
            "--kv-transfer-config", json.dumps(transfer), "--num-gpu-blocks-override", "256",
            "--no-async-scheduling", "--block-size", str(BLOCK),
        ],
        environment={
            "PYTHONPATH": os.pathsep.join([str(installed(folder / "installed")), str(REPOSITORY)]),
            "VLLM_PLUGINS": "holdfast",
        },
    )  # fmt: skip
    yield servers
    stop_fleet(servers)


def post(server: Server, body: dict):
    whole = {"model": "tiny", "temperature": 0, "ignore_eos": True, "return_token_ids": True} | body
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(whole).encode(), headers)
    return urllib.request.urlopen(request, timeout=WAIT_S_MAX)


def asked(server: Server, prompt: list[int], tokens: int, **body) -> list[int]:
    """What it answers, as ids."""
    with post(server, {"prompt": prompt, "max_tokens": tokens} | body) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


def session(name: str, generation: int) -> dict:
    return {"kv_transfer_params": {"holdfast_session": name, "holdfast_generation": generation}}


def status(server: Server) -> dict:
    with urllib.request.urlopen(f"{server.url}/holdfast/status", timeout=WAIT_S_MAX) as answer:
        return json.load(answer)


def settled(server: Server) -> dict:
    """Its part in the store, once nothing of it waits."""
    deadline_s = time.monotonic() + WAIT_S_MAX
    while (told := status(server)["store"])["queued_pages"]:
        assert time.monotonic() < deadline_s, told
        time.sleep(0.05)
    return told


def tokens_of(stream) -> Iterator[list[int]]:
    for line in stream:
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                yield choice["token_ids"] or []


@pytest.mark.parametrize(("params", "field"), [
    ({"holdfast_session": "a b"}, "holdfast_session"), ({"holdfast_session": ["s"]}, "holdfast_session"),
    ({"holdfast_session": "s", "holdfast_generation": -1}, "holdfast_generation"),
    ({"holdfast_session": "s", "holdfast_generation": 2**60}, "holdfast_generation"),
    ({"holdfast_generation": 1}, "holdfast_generation"),
])  # fmt: skip
def test_what_cannot_be_a_session_is_refused_with_its_field(servers, params, field):
    """By the API server; the engine goes on."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(servers[0], {"prompt": [1, 2, 3], "max_tokens": 1, "kv_transfer_params": params})

    assert refused.value.code == 400
    error = json.load(refused.value)["error"]
    assert f"kv_transfer_params.{field}" in error["message"]
    assert error["type"] == "BadRequestError"
    assert asked(servers[0], [1, 2, 3], 1)


def test_a_server_stopped_while_its_session_moved_writes_nothing_into_it(servers, store):
    """Its stream goes on where it was, to nobody; all pages that it fills from then on are refused."""
    lost, standby = servers
    kept = open_store(store, populate=False, make=False)
    with post(lost, {"prompt": PROMPT, "max_tokens": 500, "stream": True} | session("moved", 0)) as stream:
        chunks, emitted = tokens_of(stream), []
        while len(emitted) < 70:
            emitted += next(chunks)
        before = status(standby)["store"]
        for _ in range(100):
            stop(lost, signal.SIGSTOP)
            asked(standby, [*PROMPT, *emitted], 40, **session("moved", 1))
            if not status(standby)["store"]["queued_pages"]:
                break
            stop(lost, signal.SIGCONT)  # it was stopped while it wrote, and nobody else can
        told = settled(standby)
        pages = kept.stats().pages
        stop(lost, signal.SIGCONT)
        for chunk in chunks:
            emitted += chunk

    assert len(emitted) == 500
    assert told["loaded"] - before["loaded"] >= (len(PROMPT) + 70) // BLOCK - 2
    fenced = settled(lost)
    assert fenced["fenced"] >= (500 - 70 - 40) // BLOCK - 2
    assert kept.stats().pages == pages
    assert status(standby)["store"]["fenced"] == 0
    kept.close()


def stop(server: Server, number: signal.Signals) -> None:
    for process in server.processes():
        os.kill(process.pid, number)


def test_the_next_turn_finds_its_pages_at_another_server(servers):
    """The first one is dead by then: prompt, answer and all; and the answer is the one without any pages."""
    lost, standby = servers
    first = asked(lost, PROMPT[::-1], 100, **session("turns", 0))
    assert settled(lost)["lost"] == 0
    lost.kill()
    turn = [*PROMPT[::-1], *first, *range(300, 350)]
    before = status(standby)["prefix"]

    second = asked(standby, turn, 40, **session("turns", 1))

    now = status(standby)["prefix"]
    hit = now["hit_tokens"] - before["hit_tokens"]
    assert hit == (len(PROMPT) + len(first) - 1) // BLOCK * BLOCK  # the last token of the answer was never computed
    assert hit / (now["asked_tokens"] - before["asked_tokens"]) > 0.85
    assert asked(standby, turn, 40, cache_salt="computed anew") == second
    assert status(standby)["prefix"]["hit_tokens"] == now["hit_tokens"]
