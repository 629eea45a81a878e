"""Servers of one model that are not alike."""

import asyncio
import json
import subprocess
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.processes import HOLDFAST, ROOT, Gateway, until
from tests.scenarios.asking import ask, chat, order

pytestmark = pytest.mark.slow

HURRIED = {"probe_s": 0.5, "probe_every_s": 0.25}
RATE = 50  # tokens per second and stream
TOKENS = 60


def name(stub: StubProcess) -> str:
    return stub.url.removeprefix("http://")


def apart(gateway: Gateway) -> dict[str, Any]:
    """In what each server differs, as the admin port says."""
    told = json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])["replicas"]
    return {one["replica"]: one["apart"] for one in told if one["apart"]}


@pytest.mark.parametrize("left", ["alike", "apart"])
async def test_a_lost_stream_goes_on_only_where_the_template_is_the_same(start_gateway, tokenizer, left):
    """The first of three is killed in mid-answer. One of those that are left has another chat template.

    While the other one is there, the stream goes on at that, exactly; with the odd one alone it ends with an error
    that says why, and new requests are answered there.
    """
    stub = {"tokens_per_s": RATE, "pages": 0}  # all with the plugin, and of one fingerprint
    with start_stub(**stub) as first, start_stub(**stub) as odd, start_stub(**stub) as like:
        odd.kin(template=[5])
        replicas = [first.url, odd.url, like.url]
        gateway = start_gateway(replicas, tokenizer=tokenizer, timeouts=HURRIED, integrity={"ask_every_s": 0.2})
        key = gateway.key("somebody")
        await asyncio.to_thread(until, lambda: apart(gateway) == {name(odd): {"stub": ["chat template"]}})
        table = await asyncio.to_thread(
            subprocess.run, [HOLDFAST, "replicas", "--config", gateway.config_file],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        if left == "apart":
            like.kill()
        whole = await ask(gateway, key, chat(order(tokens=TOKENS)))
        running = asyncio.create_task(ask(gateway, key, chat(order(tokens=TOKENS))))
        await asyncio.sleep(0.5)
        first.kill()
        seen = await running
        later = await ask(gateway, key, chat(order(tokens=5)))
        canaries = gateway.metric("holdfast_canaries_total", replica=name(odd), outcome="refused")
        journal = gateway.journal()
        facts = [one for one in journal if one["kind"] == "replica.apart"]
        resumes = [(one["replica"], one["same_model"]) for one in journal if "same_model" in one]
        metric = gateway.metric("holdfast_replica_apart", replica=name(odd))

    assert f"{name(odd)} has another chat template than most" in " ".join(table.stdout.split())
    assert [(one["replica"], one["model"], one["what"]) for one in facts] == [(name(odd), "stub", ["chat template"])]
    assert (metric, canaries) == (1, 0)
    assert later.finish == "stop"
    if left == "alike":
        assert seen.ids == whole.ids
        assert seen.finish == whole.finish
        assert resumes == [(name(like), True)]
    else:
        assert seen.ids == whole.ids[: len(seen.ids)]
        assert b"those that are left have another chat template" in seen.body
        assert not seen.done


@pytest.mark.parametrize("bound", [True, False])
async def test_a_stream_goes_on_under_another_fingerprint_only_where_that_is_allowed(start_gateway, tokenizer, bound):
    """Of two servers the serving one is killed in mid-answer, and the one that is left has other weights.

    Bound, the stream ends with an error that says why, and new requests are answered there; else it goes on.
    """
    stub = {"tokens_per_s": RATE, "pages": 0}
    with start_stub(**stub) as first, start_stub(**stub) as odd:
        odd.pages(fingerprint="0ddb" * 16)
        integrity = {"ask_every_s": 0.2, "same_fingerprint": bound}
        gateway = start_gateway([first.url, odd.url], tokenizer=tokenizer, timeouts=HURRIED, integrity=integrity)
        key = gateway.key("somebody")

        def differ() -> bool:
            return "weights" in str(json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])["warnings"])

        await asyncio.to_thread(until, differ)
        running = asyncio.create_task(ask(gateway, key, chat(order(tokens=TOKENS))))
        await asyncio.sleep(0.5)
        first.kill()
        seen = await running
        later = await ask(gateway, key, chat(order(tokens=5)))
        legs = [one for one in gateway.journal() if "same_model" in one]
        resumes = [one["same_model"] for one in legs if one["replica"] == name(odd)]  # not where it was lost

    assert later.finish == "stop"
    assert (seen.done, resumes) == ((False, []) if bound else (True, [False]))
    assert (b"have another fingerprint (weights, configuration or layout)" in seen.body) is bound
