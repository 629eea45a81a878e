"""Every limit in time, met by real processes: what the client reads, what is charged, what the books say."""

import asyncio
import json
import time
from hashlib import sha256

import pytest
from openai import OpenAI

from loadtests.processes import start_stub
from tests.scenarios.asking import (
    ask,
    chat,
    error,
    header,
    ids_of,
    order,
    plain,
    prompt_tokens,
    request_id,
)

pytestmark = pytest.mark.slow

SLOW = order(tokens=400, tokens_per_s=50)  # for eight seconds
MUTE = order(fault="silence")
HASTE = {"first_token_s": 0.5, "between_tokens_s": 0.5, "suspect_s": 1.0}
WAITING = {**HASTE, "first_token_s": 1.0, "keepalive_s": 0.2}
SECRET = "hf-declared"


@pytest.fixture
def stub():
    with start_stub() as one:
        yield one


def declared(**timeouts: float) -> list[dict[str, object]]:
    """A key of the configuration with time limits of its own."""
    return [{"user": "alice", "sha256": sha256(SECRET.encode()).hexdigest(), "timeouts": timeouts}]


async def settled(gateway, seen):
    return await asyncio.to_thread(gateway.settled, request_id(seen))


@pytest.mark.parametrize("whose", ["key", "model", "tier", "class"])
async def test_a_turn_ends_by_the_limit_of_whatever_it_is_of(start_gateway, stub, whose):
    """In mid-stream with an error event that names the limit; what was delivered is charged."""
    mine = {"total_s": 1.0}
    if whose == "key":
        gateway = start_gateway([stub.url], keys=declared(**mine))
    elif whose in ("tier", "class"):
        own = {"name": "long", **({"timeouts": mine} if whose == "class" else {})}
        tier = {"name": "default", "classes": [{"name": "short", "output_max": 9}, own]}
        tier |= {"timeouts": mine} if whose == "tier" else {}
        gateway = start_gateway([stub.url], tiers=[tier], keys=declared())
    else:
        gateway = start_gateway([stub.url], of_model={"timeouts": mine}, keys=declared())

    body = chat(SLOW)
    seen = await ask(gateway, SECRET, body)

    assert (seen.status, error(seen)["code"], seen.done) == (200, "timeout", False)
    assert "1 s" in error(seen)["message"]
    fact = await settled(gateway, seen)
    assert fact["ending"] == "timeout"
    assert fact["charged_tokens"] == prompt_tokens(body) + len(ids_of(seen)) > prompt_tokens(body)
    assert gateway.metric("holdfast_requests_total", ending="timeout") == 1


async def test_a_plain_turn_that_takes_too_long_is_a_504(start_gateway, stub):
    """Nothing was delivered, so it has a status, and costs nothing; clients are told not to try it again."""
    gateway = start_gateway([stub.url], keys=declared(total_s=1.0))

    seen = await ask(gateway, SECRET, plain(SLOW))

    assert (seen.status, error(seen)["code"], header(seen, "x-should-retry")) == (504, "timeout", "false")
    fact = await settled(gateway, seen)
    assert (fact["ending"], fact["reason"], fact["charged_tokens"]) == ("refused", "timeout", 0)


async def test_a_session_ends_with_all_that_runs_in_it(start_gateway, stub):
    """Its time is over in mid-stream; then its name is refused before any server is asked, and others are not."""
    gateway = start_gateway([stub.url], keys=declared(session_s=1.5))
    first = await ask(gateway, SECRET, chat("hello"), x_session_id="s")
    seen = await ask(gateway, SECRET, chat(SLOW), x_session_id="s")
    asked = stub.stats()["requests"]
    late = await ask(gateway, SECRET, chat("hello"), x_session_id="s")
    asked_late = stub.stats()["requests"]
    other = await ask(gateway, SECRET, chat("hello"), x_session_id="t")

    assert (first.status, first.done, other.status, other.done) == (200, True, 200, True)
    assert (seen.status, error(seen)["code"], seen.done) == (200, "session_timeout", False)
    assert (late.status, error(late)["code"], header(late, "x-should-retry")) == (410, "session_timeout", "false")
    assert asked_late == asked
    ended, refused = await settled(gateway, seen), await settled(gateway, late)
    assert (ended["ending"], ended["charged_tokens"] > len(ids_of(seen)) > 0) == ("session_timeout", True)
    assert (refused["ending"], refused["reason"], refused["charged_tokens"]) == ("refused", "session_timeout", 0)
    assert gateway.metric("holdfast_requests_total", ending="session_timeout") == 1
    assert gateway.metric("holdfast_refusals_total", reason="session_timeout") == 1


@pytest.mark.parametrize("fault", ["silence", "comments_only"])
async def test_a_first_token_that_does_not_come_is_a_504(start_gateway, stub, fault):
    """Comments from upstream are no progress. The client is told which limit it was, and pays nothing."""
    gateway = start_gateway([stub.url], timeouts=HASTE, limits={"legs": 1})

    seen = await ask(gateway, None, chat(order(fault=fault)))

    assert (seen.status, error(seen)["code"]) == (504, "first_token_timeout")
    assert "within 0.5 s" in error(seen)["message"]
    fact = await settled(gateway, seen)
    assert (fact["ending"], fact["reason"], fact["charged_tokens"]) == ("refused", "first_token_timeout", 0)


@pytest.mark.parametrize("fault", ["silence_after", "comments_only"])
async def test_tokens_that_stop_coming_end_the_stream_by_name(start_gateway, stub, fault):
    """After some were delivered it is an error event, and those are charged."""
    gateway = start_gateway([stub.url], timeouts=HASTE, limits={"legs": 1})

    body = chat(order(fault=fault, at=5))
    seen = await ask(gateway, None, body)

    assert (seen.status, error(seen)["code"], seen.done) == (200, "between_tokens_timeout", False)
    fact = await settled(gateway, seen)
    assert fact["ending"] == "between_tokens_timeout"
    assert fact["charged_tokens"] == prompt_tokens(body) + len(ids_of(seen)) > prompt_tokens(body)


async def test_a_model_is_as_patient_as_it_says(start_gateway, stub):
    """Instead of what holds for all models."""
    patience = {"timeouts": {"first_token_s": 5.0}}
    gateway = start_gateway([stub.url], of_model=patience, timeouts=HASTE, limits={"legs": 1})

    seen = await ask(gateway, None, chat(order(tokens=5, ttft_s=1.2)))

    assert (seen.status, seen.done) == (200, True)


async def test_a_waiting_client_gets_comments_that_its_sdk_skips(start_gateway, stub):
    """Before the first token and between two; its answer is as if there were none."""
    gateway = start_gateway([stub.url], timeouts={"keepalive_s": 0.3})
    said = order(tokens=4, ttft_s=1.0, tokens_per_s=1.5)

    seen = await ask(gateway, None, chat(said))
    with OpenAI(base_url=gateway.url + "/v1", api_key="-") as client:
        asked = {"model": "stub", "messages": [{"role": "user", "content": said}], "stream": True}
        chunks = await asyncio.to_thread(lambda: [*client.chat.completions.create(**asked)])

    body = bytes(seen.body)
    assert body.startswith(b": ping\n")
    assert body.count(b": ping\n") >= 4
    assert b": ping\n\n" not in body
    assert body.index(b'"content"') < body.rindex(b": ping\n")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) != ""
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_no_comment_comes_where_tokens_do(start_gateway, stub):
    """A stream that says something more often than that has only its own bytes."""
    gateway = start_gateway([stub.url], timeouts={"keepalive_s": 0.5})

    seen = await ask(gateway, None, chat(order(tokens=60, tokens_per_s=40)))

    assert seen.done
    assert b": ping" not in seen.body


async def test_after_a_comment_what_goes_wrong_is_an_error_event(start_gateway, stub):
    """Its status was sent: 200. The error is the one that would have had a status, and nothing is charged."""
    gateway = start_gateway([stub.url], timeouts=WAITING, limits={"legs": 1})

    seen = await ask(gateway, None, chat(MUTE))

    assert (seen.status, seen.ended, seen.done) == (200, "clean", False)
    assert seen.body.startswith(b": ping\n")
    said = json.loads(bytes(seen.body).rpartition(b"data: ")[2])["error"]
    assert (said["code"], set(said)) == ("first_token_timeout", {"message", "type", "param", "code"})
    fact = await settled(gateway, seen)
    assert (fact["ending"], fact["reason"], fact["charged_tokens"]) == ("refused", "first_token_timeout", 0)
    assert gateway.metric("holdfast_refusals_total", reason="first_token_timeout") == 1


async def test_a_server_lost_while_the_client_waits_is_replaced_by_another(start_gateway, stub):
    """A comment is no token: what cannot go on elsewhere in mid-answer is still asked for anew."""
    gateway = start_gateway([stub.url], timeouts=WAITING, limits={"legs": 2})
    stub.arm("silence", times=1)
    began_s = time.monotonic()

    seen = await ask(gateway, None, chat("hello", logprobs=True))

    assert time.monotonic() - began_s >= 1.0
    assert seen.body.startswith(b": ping\n")
    assert (seen.status, seen.done) == (200, True)
    assert (await settled(gateway, seen))["failovers"] == 0
