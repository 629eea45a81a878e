"""Real vLLM servers, killed by real signals in mid-stream."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.local.engine import Engine
from tests.answers import Answer, ask
from tests.conftest import FreshEngines, Server
from tests.e2e.requests import chat
from tests.processes import Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

STREAMS = 8
TOKENS = 400  # seconds of work for three times eight streams, so that kills fall into it: half a second after its start
PAUSE_S_MAX = 30.0  # a bound for starved machines, not the goal: `make prove` measures that
# On a starved machine a race, or admission, might take a stream elsewhere before its server is killed.
ALONE: dict[str, Any] = {"limits": {"hedges": 0}, "admission": {"on": False}}

DEATHS: dict[str, Callable[[Engine], None]] = {
    "the whole process group": lambda engine: engine.kill(signal.SIGKILL),
    "EngineCore, under a living API server": lambda engine: os.kill(engine.core_pid, signal.SIGKILL),
    "the API server, its engine left behind": lambda engine: os.kill(engine.pid, signal.SIGKILL),
}


async def test_streams_outlive_their_server_whatever_of_it_is_killed(
    fresh_engines: FreshEngines, engines: tuple[Server, Server], engine_model: Path, tmp_path: Path
) -> None:
    """Three servers die at once, each in its own way and behind its own gateway; all streams of each go on exactly.

    One of them is a shared one, if it is ours: no other test comes after this one but by chance.
    """
    lasting = {"max_tokens": TOKENS, "ignore_eos": True, "repetition_penalty": 1.3}
    bodies = [chat(f"Tell me {n} things.", **lasting) for n in range(STREAMS)]
    shared, heir = engines
    own = [shared.engine] if shared.engine is not None else []
    doomed = [*await asyncio.to_thread(fresh_engines, len(DEATHS) - len(own)), *own]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        wanted = await asyncio.gather(*(ask(session, heir.url, body) for body in bodies))

        async def dies(engine: Engine, what: str) -> None:
            folder = tmp_path / str(engine.port)
            folder.mkdir()
            upstreams = [engine.url, heir.url]
            with Gateway(folder, upstreams, model="tiny", tokenizer=tokenizer, wait=False, **ALONE) as gateway:
                await asyncio.to_thread(gateway.wait_ready)
                key = gateway.key("alice", 100_000)
                asked = [asyncio.create_task(ask(session, gateway.url, body, key=key)) for body in bodies]
                await _generating(session, engine)
                DEATHS[what](engine)
                got = await asyncio.gather(*asked)

                for want, have in zip(wanted, got, strict=True):
                    assert have.content == want.content, (what, have.error, gateway.log()[-4000:])
                    assert have.said is not None, what  # it was cut, and says so
                    assert max(have.gaps_s) < PAUSE_S_MAX
                paid = await asyncio.to_thread(gateway.paid, key)
                assert paid.spent == sum(map(_cost, got)) == sum(map(_cost, wanted))
                assert gateway.faults() == []

        tokenizer = engine_model / "tokenizer.json"
        await asyncio.gather(*map(dies, doomed, DEATHS))


async def _generating(session: aiohttp.ClientSession, engine: Engine) -> None:
    """Wait until the engine computes all the streams, and some way into them."""
    for _ in range(600):
        async with session.get(engine.url + "/metrics") as response:
            metrics = await response.text()
        if f'vllm:num_requests_running{{engine="0",model_name="tiny"}} {STREAMS:.1f}' in metrics:
            break
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)


def _cost(answer: Answer) -> int:
    assert answer.usage is not None
    total: int = answer.usage["prompt_tokens"] + answer.tokens
    return total
