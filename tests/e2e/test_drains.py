"""Real vLLM servers that are emptied by plan, under load."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.answers import Answer, ask
from tests.conftest import Server
from tests.e2e.requests import chat
from tests.processes import Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.prove]

STREAMS = 4
TOKENS = 500  # seconds of work, or tenths of one where the machine is fast
WITHIN_S = 60.0
ROUNDS_MAX = 6  # a fast server may be done before it is drained, which shows nothing


async def test_streams_of_a_server_that_is_drained_go_on_exactly_at_the_other(
    engines: tuple[Server, Server], engine_model: Path, tmp_path: Path
) -> None:
    """Token for token, charged once, and nothing runs there any more; those that were done by then had all of it."""
    bodies = [
        chat(f"Name {n} towns.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.3) for n in range(STREAMS)
    ]
    upstreams, moved, spent = [engine.url for engine in engines], 0, 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        wanted = await asyncio.gather(*(ask(session, engines[0].url, body) for body in bodies))
        with Gateway(tmp_path, upstreams, model="tiny", tokenizer=engine_model / "tokenizer.json") as gateway:
            key = gateway.key("alice", 1_000_000)
            for _ in range(ROUNDS_MAX):
                got, told = await _drained(session, gateway, engines[0].address, bodies, key)
                elsewhere = sum(one.said is not None for one in got)
                spent += sum(one.usage["prompt_tokens"] + one.tokens for one in got if one.usage is not None)
                moved += elsewhere
                assert (told["left"], told["running"], told["empty"]) == ({}, 0, True), told
                assert elsewhere <= told["moved"] <= STREAMS, told
                assert [one.content for one in got] == [one.content for one in wanted]
                if moved >= STREAMS:
                    break
            paid = await asyncio.to_thread(gateway.paid, key)
            assert gateway.faults() == []

    assert moved
    assert paid.spent == spent


async def _drained(
    session: aiohttp.ClientSession, gateway: Gateway, name: str, bodies: list[dict[str, Any]], key: str
) -> tuple[list[Answer], dict[str, Any]]:
    """Drain a server once each stream has a token, until it is empty; the answers, and what was told of it then."""
    growing = [Answer() for _ in bodies]
    asked = [
        asyncio.create_task(ask(session, gateway.url, body, key=key, answer=answer))
        for body, answer in zip(bodies, growing, strict=True)
    ]
    room = f"{gateway.admin_url}/admin/replicas/{name}"
    async with asyncio.timeout(WITHIN_S):
        while not all(answer.tokens for answer in growing):  # noqa: ASYNC110 - `ask` sets no event per token
            await asyncio.sleep(0.005)
        async with session.post(f"{room}/drain", json={"at_once": STREAMS}) as answered:
            told = json.loads(await answered.text())
        while not told["empty"]:
            await asyncio.sleep(0.05)
            async with session.get(f"{room}/drain") as answered:
                told = json.loads(await answered.text())
        got = await asyncio.gather(*asked)
    async with session.post(f"{room}/undrain", json={}) as answered:
        assert answered.status == 200
    return got, told
