"""Streams that their requests' features keep from going on by their ids: replayed at a server that continues them."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.processes import TRUSTING, until
from tests.processes import ForkedGateway as Gateway
from tests.scenarios.asking import (
    CHAT,
    TEXT,
    House,
    ask,
    chat,
    error,
    ids_of,
    order,
    plain,
    request_id,
    text_of,
    undisturbed,
    usage,
)  # fmt: skip
from tests.scenarios.conftest import TIMEOUTS

pytestmark = pytest.mark.slow

TOKENS = 40
CUTS = (1, 2, 7, 20, 33, 39)  # of its tokens; then it is killed
SEEDED = {"seed": 7, "temperature": 0.9}
COMPLETION = {"model": "stub", "stream": True, "return_token_ids": True, "stream_options": {"include_usage": True},
              "max_tokens": 24}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "seed": (CHAT, chat(order(tokens=TOKENS), **SEEDED)),
    "seed, events of several tokens": (CHAT, chat(order(tokens=TOKENS, per_chunk=3), **SEEDED)),
    "tools, penalties": (CHAT, chat(order(tokens=TOKENS), tools=[{"type": "function"}], presence_penalty=1.0,
                                       temperature=0)),
    "structured output": (CHAT, chat(order(tokens=TOKENS), response_format={"type": "json_object"}, **SEEDED)),
    "logprobs, bad words": (CHAT, chat(order(tokens=TOKENS), logprobs=True, bad_words=["no"], **SEEDED)),
    "three choices": (CHAT, chat(order(tokens=TOKENS), n=3, **SEEDED)),
    "stop": (CHAT, chat(order(tokens=TOKENS), stop=["e", " "], min_tokens=30, **SEEDED)),
    "completion, echo": (TEXT, COMPLETION | {"prompt": "Once upon a time", "echo": True, **SEEDED}),
    "prompts, two choices": (TEXT, COMPLETION | {"prompt": ["One", "Two ü", "Three"], "n": 2, **SEEDED}),
}


def replicas(gateway: Gateway) -> list[dict[str, Any]]:
    """As the admin port tells of them."""
    told: list[dict[str, Any]] = json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])["replicas"]
    return told


def know(gateway: Gateway, *able: StubProcess) -> None:
    """Wait until it is known that these continue streams, and no others."""
    names = {one.url.removeprefix("http://") for one in able}
    until(lambda: {one["replica"] for one in replicas(gateway) if one["pages"]["continues"]} == names)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[House]:
    """Two servers with the plugin, behind a gateway without a tokenizer."""
    with start_stub(continues="{}") as active, start_stub(continues="{}") as standby:
        folder = tmp_path_factory.mktemp("both")
        integrity = {"ask_every_s": 0.5}
        with Gateway(
            folder, [active.url, standby.url], timeouts=TIMEOUTS, health=TRUSTING, integrity=integrity
        ) as gateway:
            know(gateway, active, standby)
            yield House(gateway, active, standby, gateway.keys_create("somebody"))
            assert gateway.faults() == []


def told(seen: Any) -> tuple[Any, ...]:
    """All that must be as it would have been."""
    finishes = [
        (choice["index"], choice["finish_reason"], choice.get("stop_reason"))
        for event in seen.events for choice in event.get("choices", []) if choice.get("finish_reason")
    ]  # fmt: skip
    indexes = sorted({choice["index"] for event in seen.events for choice in event.get("choices", [])})
    roles = sum("role" in choice.get("delta", ()) for event in seen.events for choice in event.get("choices", []))
    said = [(ids_of(seen, index), text_of(seen, index)) for index in indexes]
    return said, sorted(finishes), roles, usage(seen), seen.done


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_goes_on_exactly_from_each_cut(both, kind):
    """Ids, text, ends, roles and usage are those of a stream that was never cut, and the ids of one answer."""
    path, body = KINDS[kind]
    whole = await undisturbed(both.standby, body, path)
    before = both.gateway.metric("holdfast_continued_total", by="replay")
    for cut in CUTS:
        both.active.arm("cut", at=cut)
        seen = await ask(both.gateway, both.key, body, path)
        both.active.arm(None)

        assert told(seen) == told(whole), (kind, cut, seen.body[-300:])
        assert len({event["id"] for event in seen.events}) == 1
        tale = seen.events[-1].get("holdfast")
        assert tale is None or tale["failovers"] == 1  # an answer may end before its cut
    assert both.gateway.metric("holdfast_continued_total", by="replay") >= before + 3


async def test_without_a_seed_of_the_clients_its_noise_goes_on_too(both):
    """The gateway gives one where the server can use it: what follows a cut is what that seed would have said."""
    body = chat(order(tokens=TOKENS), temperature=0.9)
    both.active.arm("cut", at=15)
    seen = await ask(both.gateway, both.key, body)
    both.active.arm(None)
    again = await ask(both.gateway, both.key, body)

    asked = [one for stub in (both.active, both.standby) for one in stub.stats()["recorded"]]
    drawn = []
    for one in (seen, again):
        (seed,) = {ask["body"]["seed"] for ask in asked if ask["headers"].get("x-request-id") == request_id(one)}
        whole = await undisturbed(both.standby, body | {"seed": seed})
        assert ids_of(one) == ids_of(whole)
        drawn.append(seed)
    assert seen.events[-1]["holdfast"]["failovers"] == 1
    assert drawn[0] != drawn[1]


async def test_plain_answers_get_no_seed(both):
    """They are asked for again whole."""
    await ask(both.gateway, both.key, plain(order(tokens=3), temperature=0.9))

    assert "seed" not in both.active.stats()["recorded"][-1]["body"]


async def test_the_journal_says_how_a_stream_went_on(both):
    """By replay, with the tokens that its client had; the prompt and those are the house's."""
    both.active.arm("cut", at=10)
    seen = await ask(both.gateway, both.key, KINDS["seed"][1])
    both.active.arm(None)
    settled = both.gateway.settled(request_id(seen))

    facts = [fact for fact in both.gateway.journal() if fact.get("request_id") == request_id(seen)]
    opened = [fact for fact in facts if fact["kind"] == "leg.opened"]
    prompt, _ = usage(seen)
    assert [(fact.get("by"), fact["tokens"]) for fact in opened] == [(None, 0), ("replay", 10)]
    assert (settled["failovers"], settled["recomputed_tokens"]) == (1, prompt + 10)
    assert settled["charged_tokens"] == prompt + TOKENS


async def test_a_hung_engine_is_outrun_by_a_replay(start_gateway):
    """Whatever the request uses, its stream does not wait for the hung server to be ejected."""
    with start_stub(continues="{}", tokens_per_s=20) as active, start_stub(continues="{}", tokens_per_s=20) as standby:
        timeouts = {"suspect_s": 0.25, "first_token_s": 20, "between_tokens_s": 20}
        gateway = start_gateway([active.url, standby.url], timeouts=timeouts, integrity={"ask_every_s": 0.5})
        know(gateway, active, standby)
        key, body = gateway.key("somebody"), KINDS["tools, penalties"][1] | SEEDED
        whole = await undisturbed(standby, body)
        running = asyncio.create_task(ask(gateway, key, body))
        await asyncio.to_thread(until, lambda: active.stats()["tokens_sent_total"] > 5)
        active.freeze_engine()
        seen = await running
        won = [fact for fact in gateway.journal() if fact["kind"] == "hedge.opened"]
        active.thaw_engine()

    assert told(seen) == told(whole)
    assert won[-1]["by"] == "replay"


@pytest.mark.parametrize("continues", [None, '{"seeds": false}'])
async def test_what_no_server_that_is_left_continues_ends_by_name(start_gateway, continues):
    """The only one that continues it was killed: an error after what was delivered, and no [DONE]."""
    with (
        start_stub(continues="{}", tokens_per_s=20) as active,
        start_stub(continues=continues, pages=0) as standby,
    ):
        gateway = start_gateway([active.url, standby.url], integrity={"ask_every_s": 0.5}, health=TRUSTING)
        able = [active, *([standby] if continues else [])]
        await asyncio.to_thread(know, gateway, *able)
        running = asyncio.create_task(ask(gateway, gateway.key("somebody"), KINDS["seed"][1]))
        await asyncio.to_thread(until, lambda: active.stats()["tokens_sent_total"] > 5)
        active.kill()
        seen = await running
        calm = await ask(gateway, gateway.key("else"), chat(order(tokens=5), temperature=0.9))

    assert error(seen)["code"] == "uncontinuable"
    assert error(seen)["message"].endswith("seed cannot be continued exactly on another.")
    assert 5 < len(ids_of(seen)) < TOKENS
    assert not seen.done
    assert calm.done
