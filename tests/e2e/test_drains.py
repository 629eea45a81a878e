"""Real vLLM servers that are emptied by plan, under load."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.answers import ask
from tests.conftest import Server
from tests.e2e.requests import chat
from tests.processes import Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

STREAMS = 4
TOKENS = 800  # seconds of work
WITHIN_S = 60.0


async def test_streams_of_a_server_that_is_drained_go_on_exactly_at_the_other(
    engines: tuple[Server, Server], engine_model: Path, tmp_path: Path
) -> None:
    """All of them, token for token, charged once; then nothing runs there any more."""
    bodies = [
        chat(f"Name {n} towns.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.3) for n in range(STREAMS)
    ]
    upstreams = [engine.url for engine in engines]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        wanted = await asyncio.gather(*(ask(session, engines[0].url, body) for body in bodies))
        with Gateway(tmp_path, upstreams, model="tiny", tokenizer=engine_model / "tokenizer.json") as gateway:
            key = gateway.key("alice", 100_000)
            asked = [asyncio.create_task(ask(session, gateway.url, body, key=key)) for body in bodies]
            name = engines[0].address
            room = f"{gateway.admin_url}/admin/replicas/{name}/drain"
            await _tokens(session, engines[0], STREAMS)
            async with session.post(room, json={"at_once": 2}) as answer:
                told = json.loads(await answer.text())
            until_s = asyncio.get_running_loop().time() + WITHIN_S
            while not told["empty"] and asyncio.get_running_loop().time() < until_s:
                await asyncio.sleep(0.05)
                async with session.get(room) as answer:
                    told = json.loads(await answer.text())
            still = sum(not one.done() for one in asked)
            got = await asyncio.gather(*asked)
            paid = await asyncio.to_thread(gateway.paid, key)
            assert gateway.faults() == []

    assert (told["moved"], told["left"], told["running"], told["empty"]) == (STREAMS, {}, 0, True), told
    assert still == STREAMS  # or they ended by themselves, and this shows nothing
    assert [one.content for one in got] == [one.content for one in wanted]
    assert all(one.said is not None for one in got)  # each went on elsewhere, and says so
    assert paid.spent == sum(one.usage["prompt_tokens"] + one.tokens for one in got if one.usage is not None)


async def _tokens(session: aiohttp.ClientSession, engine: Server, streams: int) -> None:
    """Wait until the engine computes all the streams, and some way into them."""
    for _ in range(600):
        async with session.get(engine.url + "/metrics") as response:
            metrics = await response.text()
        if f'vllm:num_requests_running{{engine="0",model_name="tiny"}} {streams:.1f}' in metrics:
            break
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
