"""The stub's engine with limits: the same answers, but computed in batches, by a server that can be full."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from loadtests.processes import StubProcess
from loadtests.stub_computer import computer
from loadtests.stub_engine import Engine as Clock
from tests.loadtests.raw_client import Seen, ask

CHAT = "/v1/chat/completions"
SLOW = {"step_s": 0.05, "prefill_token_s": 0, "decode_s": 0, "kv_token_s": 0, "noise": 0, "stall_share": 0}


def chat(said: str = "hello", tokens: int = 40, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": said}]
    return {"model": "tiny", "messages": messages, "stream": True, "return_token_ids": True, "temperature": 1.0,
            "stub": {"tokens": tokens}, **more}  # fmt: skip


async def gauges(stub: StubProcess) -> dict[str, float]:
    """What /metrics says, by vLLM's names."""
    seen = await ask(stub.port, "/metrics")
    rows = [line.split() for line in seen.body.decode().splitlines() if line.startswith("vllm:")]
    return {name.partition("{")[0].removeprefix("vllm:"): float(value) for name, value in rows}


async def until(stub: StubProcess, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Look until the gauges are such."""
    async with asyncio.timeout(20):
        while not holds(seen := await gauges(stub)):  # noqa: ASYNC110 - it is another process's
            await asyncio.sleep(0.02)
    return seen


@asynccontextmanager
async def asked(stub: StubProcess, *bodies: dict[str, Any], until: Callable[[Seen], bool] = lambda _: False) -> Any:
    """All of them at once; none is left behind."""
    tasks: list[Awaitable[Seen]] = [asyncio.ensure_future(ask(stub.port, CHAT, body, until=until)) for body in bodies]
    try:
        yield tasks
    finally:
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    "body", [chat(), chat(stream=False), chat(n=3), chat(stop=["e"]), chat(max_tokens=7), chat(stub={})],
    ids=["stream", "plain", "choices", "stop", "limit", "its own length"],
)  # fmt: skip
async def test_answers_are_those_of_a_stub_without_limits(stub, start, body):
    """The same ids and ends; only when they come differs."""
    limited = start(engine="{}")

    free, computed = await ask(stub.port, CHAT, body), await ask(limited.port, CHAT, body)

    assert (computed.status, computed.ended) == (200, "clean")
    if not body["stream"]:
        assert computed.json["choices"] == free.json["choices"]
        return
    ends = [
        {(choice["index"], choice["finish_reason"]) for event in seen.events for choice in event["choices"]}
        for seen in (free, computed)
    ]
    assert computed.done
    assert (computed.ids, computed.text, ends[1]) == (free.ids, free.text, ends[0])


@pytest.mark.slow
async def test_no_more_run_than_there_are_seats_and_metrics_say_who_waits(start):
    """Two run, three wait; all are answered in the end, and then nothing is left."""
    stub = start(engine=json.dumps({**SLOW, "seqs_max": 2}))

    async with asked(stub, *(chat(f"number {number}", tokens=20) for number in range(5))) as answers:
        full = await until(stub, lambda seen: (seen["num_requests_running"], seen["num_requests_waiting"]) == (2, 3))
    idle = await until(stub, lambda seen: not seen["num_requests_running"])

    assert 0 < full["kv_cache_usage_perc"] < 1
    assert [len((await answer).ids) for answer in answers] == [20] * 5
    assert (idle["num_requests_waiting"], idle["kv_cache_usage_perc"]) == (0.0, 0.0)


@pytest.mark.slow
async def test_a_client_that_leaves_makes_room(start):
    """Its stream is taken out, whether it ran or waited, and who waits is computed."""
    stub = start(engine=json.dumps({**SLOW, "seqs_max": 1}))
    leaving = asyncio.ensure_future(ask(stub.port, CHAT, chat("leaves", 1000), until=lambda seen: len(seen.ids) > 20))
    await until(stub, lambda seen: seen["num_requests_running"] == 1)

    stays = await ask(stub.port, CHAT, chat("stays", 5))

    assert (await leaving).ended == "left"
    assert len(stays.ids) == 5
    await until(stub, lambda seen: seen["num_requests_running"] + seen["num_requests_waiting"] == 0)
    assert len((await asyncio.to_thread(stub.stats))["aborted"]) == 1


@pytest.mark.slow
async def test_a_full_cache_preempts_and_every_token_comes_once(start):
    """Two streams that do not both fit: the younger is computed anew, and says nothing twice."""
    stub = start(engine=json.dumps({"kv_blocks": 12, "stall_share": 0}), max_model_len=192)

    async with asked(stub, chat("one", 150), chat("two", 150)) as answers:
        pass

    assert [len((await answer).ids) for answer in answers] == [150, 150]
    assert (await gauges(stub))["num_preemptions_total"] > 0


@pytest.mark.slow
async def test_a_step_lasts_what_it_is_said_to(start):
    """An answer of ten tokens takes ten steps of 50 ms and never less; the engine's clock is what it goes by."""
    stub = start(engine=json.dumps(SLOW))
    began_s = time.monotonic()

    seen = await ask(stub.port, CHAT, chat(tokens=10))

    assert len(seen.ids) == 10
    assert time.monotonic() - began_s >= 10 * SLOW["step_s"]


@pytest.mark.parametrize("fault", ["cut", "cut_event", "error_then_done", "abort_finish", "eof_no_done"])
async def test_faults_strike_where_they_were_ordered_to(start, fault):
    """After five tokens, as without limits; and the next answer is whole."""
    stub = start(engine="{}")

    hit = await ask(stub.port, CHAT, chat(stub={"tokens": 40, "fault": fault, "at": 5}))
    whole = await ask(stub.port, CHAT, chat())

    assert len(hit.ids) == 5
    assert (fault == "cut_event") == (not hit.body.endswith(b"\n\n"))  # inside of the next one
    assert (len(whole.ids), whole.done) == (40, True)


async def test_tokens_come_in_chunks_where_these_were_asked_for(start):
    """The first by itself, then four at a time, and what is left."""
    stub = start(engine="{}")

    seen = await ask(stub.port, CHAT, chat(stub={"tokens": 12, "per_chunk": 4}))

    chunks = [len(choice.get("token_ids") or []) for event in seen.events for choice in event["choices"]]
    assert [size for size in chunks if size] == [1, 4, 4, 3]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("[]", "not a JSON object"),
        ('{"seats": 3}', "unknown: seats"),
        ('{"seqs_max": 0}', "seqs_max: not above 0"),
        ('{"step_s": -1}', "step_s: not above 0"),
        ('{"kv_blocks": 10}', "kv_blocks: 10 cannot hold the window of 4096 tokens"),
    ],
)
def test_limits_that_make_no_sense_are_refused(said, why):
    """With the field's name."""
    with pytest.raises(ValueError, match=why):
        computer(said, 4096, Clock(), Random(7))
