"""Real vLLM servers that share a page store: a long conversation goes on elsewhere, and is not computed again."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

from gateway.local.engine import Engine
from tests.answers import Answer, ask
from tests.e2e.conftest import Paged
from tests.e2e.continuations import known
from tests.processes import Gateway, until
from tests.shared_pages import (
    BLOCK,
    KINDS,
    PROMPT_TOKENS,
    brought,
    conversation,
    metrics,
    store_url,
)
from vllm_plugin.store.stores import open_store

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TOKENS = 500  # seconds of work for three streams at once, so that the kill falls into it
PLACES = (5, 30, 60)  # each stream has brought so many at least
WAIT_S = 120.0
SPOKEN = {"chat_template_kwargs": {"enable_thinking": False}}  # else the model's words would be called its thoughts


async def test_long_conversations_go_on_at_the_standby_with_the_pages_of_the_server_that_was_killed(
    paged: Paged, tmp_path: Path
) -> None:
    """Token for token, charged once, and no page of their prompts is computed again."""
    fleet = await asyncio.to_thread(paged.fleet)
    file = paged.model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    bodies = [conversation(kind, tokenizer, 1, PROMPT_TOKENS, TOKENS) | SPOKEN for kind in KINDS[: len(PLACES)]]
    # On a starved machine a race, or admission, might take a stream elsewhere before its server is killed.
    alone: dict[str, Any] = {"limits": {"hedges": 0}, "admission": {"on": False}}
    async with aiohttp.ClientSession() as session:
        with Gateway(tmp_path, [engine.url for engine in fleet], model="tiny", tokenizer=file, **alone) as gateway:
            key = gateway.key("alice", 100_000)
            await asyncio.to_thread(known, gateway)
            await asyncio.to_thread(until, lambda: all(_written(engine) for engine in fleet), WAIT_S)
            had, before = pages_in(paged.home), metrics(fleet[1])
            got = [Answer() for _ in bodies]
            asked = [
                asyncio.create_task(ask(session, gateway.url, body, key=key, answer=one))
                for body, one in zip(bodies, got, strict=True)
            ]
            places = list(zip(got, PLACES, strict=True))
            await asyncio.to_thread(until, lambda: all(one.tokens >= place for one, place in places), WAIT_S)
            # What was full by now is written in this order.
            stored = had + sum((len(one.prompt_ids) + one.tokens) // BLOCK for one in got)
            await asyncio.to_thread(until, lambda: pages_in(paged.home) >= stored, WAIT_S)
            fleet[0].kill(signal.SIGKILL)
            await asyncio.gather(*asked)
            paid = await asyncio.to_thread(gateway.paid, key)
            after = metrics(fleet[1])
            assert gateway.faults() == []
        wanted = await asyncio.gather(*(ask(session, fleet[1].url, body) for body in bodies))

    assert [one.content for one in got] == [one.content for one in wanted]
    assert all(one.said is not None for one in got)  # each was cut, and says so
    assert paid.spent == sum(one.usage["prompt_tokens"] + one.tokens for one in got if one.usage is not None)
    assert brought(before, after) >= sum(len(one.prompt_ids) // BLOCK * BLOCK for one in got)
    assert after["holdfast_pages_loaded"] > before["holdfast_pages_loaded"]


def _written(engine: Engine) -> bool:
    """Whether all that it has computed so far is in the store."""
    return metrics(engine)["holdfast_store_queued_pages"] == 0


def pages_in(home: Path) -> int:
    """How many pages the store has."""
    store = open_store(store_url(home), populate=False, make=False)
    try:
        return store.stats().pages
    finally:
        store.close()
