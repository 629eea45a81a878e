"""Prompts near to and beyond the model's window, with real processes: what is told, refused, left out."""

import asyncio
from hashlib import sha256

import openai
import pytest
from openai import OpenAI

from loadtests.processes import start_stub
from tests.scenarios.asking import TEXT, ask, chat, error, header, plain, prompt_tokens, request_id, usage

pytestmark = pytest.mark.slow

WINDOW = 4096  # the stub's
SECRET = "hf-declared"


@pytest.fixture
def stub():
    with start_stub() as one:
        yield one


def declared(**more: object) -> list[dict[str, object]]:
    return [{"user": "alice", "sha256": sha256(SECRET.encode()).hexdigest(), **more}]


def long(tokens: int, **more: object) -> dict[str, object]:
    """A chat whose prompt has just so many tokens."""
    said = "a"
    while (missing := tokens - prompt_tokens(chat(said))) > 0:
        said += " a" * max(1, missing // 2)
    while prompt_tokens(chat(said)) > tokens:
        said = said[:-1]
    body = chat(said, **more)
    assert prompt_tokens(body) == tokens
    return body


def computed(stub) -> int:
    """Requests that the stub computed."""
    return int(stub.stats()["requests"])


async def settled(gateway, seen):
    return await asyncio.to_thread(gateway.settled, request_id(seen))


async def test_who_is_near_is_told_in_a_header_and_the_journal(start_gateway, stub):
    """From nine tenths on; below, nothing is said."""
    gateway = start_gateway([stub.url])
    near, far = long(int(0.95 * WINDOW), max_tokens=3), long(int(0.85 * WINDOW), max_tokens=3)

    told, silent = await ask(gateway, None, near), await ask(gateway, None, far)

    assert (told.status, header(told, "x-holdfast-context-used")) == (200, f"{prompt_tokens(near)}/{WINDOW}")
    assert (silent.status, header(silent, "x-holdfast-context-used")) == (200, None)
    fact = await settled(gateway, told)
    assert (fact["context_tokens"], fact["context_limit"]) == (prompt_tokens(near), WINDOW)
    assert "context_tokens" not in await settled(gateway, silent)


@pytest.mark.parametrize("make", [chat, plain])
async def test_beyond_the_window_no_server_computes_anything(start_gateway, stub, make):
    """400 in OpenAI's shape, which names the field; nothing is charged, and the books say why."""
    gateway = start_gateway([stub.url])
    before = computed(stub)

    seen = await ask(gateway, None, make("a " * 3000))

    assert (seen.status, error(seen)["code"], error(seen)["param"]) == (400, "context_length_exceeded", "messages")
    assert error(seen)["type"] == "invalid_request_error"
    assert error(seen)["message"].startswith(f"This model's maximum context length is {WINDOW} tokens.")
    assert computed(stub) == before
    fact = await settled(gateway, seen)
    assert (fact["ending"], fact["reason"], fact["charged_tokens"]) == ("refused", "context_length_exceeded", 0)
    assert gateway.metric("holdfast_refusals_total", reason="context_length_exceeded") == 1


async def test_the_sdk_meets_it_as_with_openai(start_gateway, stub):
    """A BadRequestError with OpenAI's code; it is not tried again."""
    gateway = start_gateway([stub.url])
    said = [{"role": "user", "content": "a " * 3000}]

    with OpenAI(base_url=gateway.url + "/v1", api_key="-") as client, pytest.raises(openai.BadRequestError) as failed:
        await asyncio.to_thread(client.chat.completions.create, model="stub", messages=said)

    assert (failed.value.code, failed.value.param) == ("context_length_exceeded", "messages")
    assert gateway.metric("holdfast_refusals_total", reason="context_length_exceeded") == 1


async def test_a_completion_and_a_model_s_own_limit(start_gateway, stub):
    """A configured limit below the window is refused just so; the field is the prompt."""
    gateway = start_gateway([stub.url], of_model={"context_tokens": 1500})
    body = {"model": "stub", "prompt": "a " * 1600, "max_tokens": 3}

    seen = await ask(gateway, None, body, TEXT)
    short = await ask(gateway, None, {**body, "prompt": "a"}, TEXT)

    assert (seen.status, error(seen)["code"], error(seen)["param"]) == (400, "context_length_exceeded", "prompt")
    assert "maximum context length is 1500 tokens" in error(seen)["message"]
    assert short.status == 200


@pytest.mark.parametrize("make", [chat, plain])
async def test_a_key_that_opted_in_loses_its_oldest_turns_and_is_told(start_gateway, stub, make):
    """The server gets what is left, whole turns of it; header and journal say how many messages went."""
    gateway = start_gateway([stub.url], keys=declared(over_context="truncate"))
    system, question = {"role": "system", "content": "Be terse."}, {"role": "user", "content": "And now?"}
    old = [
        {"role": "user", "content": "a " * 1400},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]  # fmt: skip
    new = [{"role": "user", "content": "b " * 1000}, {"role": "assistant", "content": "ok"}]
    body = make(max_tokens=5)
    body["messages"] = [system, *old, *new, question]

    seen = await ask(gateway, SECRET, body)

    assert (seen.status, header(seen, "x-holdfast-context-dropped")) == (200, str(len(old)))
    assert stub.stats()["recorded"][-1]["body"]["messages"] == [system, *new, question]
    fact = await settled(gateway, seen)
    assert fact["context_dropped"] == len(old)
    assert fact["charged_tokens"] == sum(usage(seen))
