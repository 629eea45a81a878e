"""The gateway in front of real vLLM, as its users meet it."""

import asyncio
import time

import aiohttp
import openai
import pytest

from loadtests.cutting_proxy import Cut
from tests.answers import ask
from tests.conftest import Server
from tests.e2e.conftest import Proxy
from tests.e2e.requests import chat
from tests.processes import Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

STOP_S_MAX = 2.0  # from a client's FIN to a vLLM that computes nothing
MESSAGES: list[dict[str, str]] = [{"role": "user", "content": "Hello, who are you?"}]


async def test_the_official_sdk_works_unchanged(gateway: Gateway, key: str, engines: tuple[Server, Server]) -> None:
    """Sync and async, streamed and plain, chat and completions: the SDK gets what vLLM itself would say."""
    direct = openai.OpenAI(base_url=f"{engines[1].url}/v1", api_key="none")
    ours = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key)
    more_ours = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key)
    want = direct.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, temperature=0)
    text = want.choices[0].message.content

    plain = ours.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, temperature=0)
    streamed = list(
        ours.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20, temperature=0, stream=True)
    )
    later = await more_ours.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=20, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in later]
    completion = await more_ours.completions.create(model="tiny", prompt="def f(", max_tokens=5, temperature=0)

    assert plain.choices[0].message.content == text
    assert plain.usage == want.usage
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    assert all(chunk.usage is None for chunk in streamed)  # it was not asked for, though the gateway did
    assert "".join(pieces) == text
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5
    assert [model.id for model in ours.models.list()] == ["tiny"]
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="hf-wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        ours.chat.completions.create(model="huge", messages=MESSAGES)
    long = [{"role": "user", "content": "many words " * 5000}]
    with pytest.raises(openai.BadRequestError, match="context length"):
        ours.chat.completions.create(model="tiny", messages=long, stream=True)


async def test_a_small_budget_ends_a_stream_exactly(gateway: Gateway, engines: tuple[Server, Server]) -> None:
    """A stream whose budget pays for 90 tokens delivers 90 minus its prompt, says why, and a next one gets 402."""
    key = gateway.keys_create("small", 90)
    body = chat("Tell me everything.", max_tokens=400, repetition_penalty=1.2)
    async with aiohttp.ClientSession() as session:
        whole = await ask(session, engines[1].url, body)
        cut = await ask(session, gateway.url, body, key=key)
        refused = await ask(session, gateway.url, body, key=key)

    assert cut.usage is not None
    assert cut.usage["prompt_tokens"] + cut.tokens == 90
    assert cut.ids[0] == whole.ids[0][: cut.tokens]
    assert whole.text[0].startswith(cut.text[0])
    assert (cut.finish, cut.stop_reason, cut.done) == (["length"], ["budget_exceeded"], True)
    assert gateway.paid(key).spent == 90
    assert refused.status == 402
    assert refused.error is not None
    assert refused.error["code"] == "budget_exceeded"


async def test_a_budget_is_charged_once_over_a_failover(
    gateway: Gateway, proxy: Proxy, engines: tuple[Server, Server]
) -> None:
    """Tokens that the standby had to compute again cost the client nothing."""
    key = gateway.keys_create("moved", 10_000)
    proxy.plan(lambda number, request: Cut(25))
    async with aiohttp.ClientSession() as session:
        got = await ask(session, gateway.url, chat("Go on.", max_tokens=50, repetition_penalty=1.2), key=key)

    assert got.said is not None
    assert got.said["failovers"] == 1
    assert got.usage is not None
    assert got.usage["completion_tokens"] == got.tokens
    assert gateway.paid(key).spent == got.usage["total_tokens"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine(
    stream: bool, gateway: Gateway, key: str, engines: tuple[Server, Server]
) -> None:
    """Within two seconds of a client's hang-up vLLM computes nothing any more."""
    body = chat("Count.", max_tokens=3500, ignore_eos=True) | {"stream": stream}
    async with aiohttp.ClientSession() as session:
        asked = asyncio.create_task(ask(session, gateway.url, body, key=key))
        while await _running(session, *engines) == 0:
            assert not asked.done()
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        left_at = time.monotonic()
        while await _running(session, *engines) > 0:
            assert time.monotonic() - left_at < STOP_S_MAX
            await asyncio.sleep(0.05)

    assert asked.cancelled()


async def _running(session: aiohttp.ClientSession, *servers: Server) -> float:
    """How many requests these servers compute now."""
    total = 0.0
    for server in servers:
        async with session.get(server.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running{"))
    return total
