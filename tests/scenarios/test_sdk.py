"""The official OpenAI SDK works unchanged, and meets errors as it does with OpenAI."""

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.processes import until
from tests.scenarios.asking import House, chat, order, prompt_tokens

SAID = [{"role": "user", "content": "hello"}]


def client_of(house: House, key: str | None = None, **options) -> OpenAI:
    return OpenAI(base_url=house.gateway.url + "/v1", api_key=key or house.key, **options)


@pytest.fixture(scope="module")
def client(house) -> Iterator[OpenAI]:
    with client_of(house, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def reference(house) -> str:
    """What the server itself says to hello."""
    with OpenAI(base_url=house.standby.url + "/v1", api_key="-") as direct:
        return direct.chat.completions.create(model="stub", messages=SAID).choices[0].message.content


def test_chat_comes_whole_and_streamed(client, reference):
    """A chat says the server's words, whole and streamed."""
    whole = client.chat.completions.create(model="stub", messages=SAID)
    chunks = list(client.chat.completions.create(model="stub", messages=SAID, stream=True))

    assert whole.choices[0].message.content == reference
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reference
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_completions_come_whole_and_streamed(client):
    """A completion says the same, whole and streamed."""
    whole = client.completions.create(model="stub", prompt="hello", max_tokens=40)
    chunks = list(client.completions.create(model="stub", prompt="hello", max_tokens=40, stream=True))

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""


async def test_async_client_gets_the_same(house, reference):
    """The asynchronous SDK gets the same words, whole and streamed."""
    async with AsyncOpenAI(base_url=house.gateway.url + "/v1", api_key=house.key, max_retries=0) as client:
        whole = await client.chat.completions.create(model="stub", messages=SAID)
        stream = await client.chat.completions.create(model="stub", messages=SAID, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        text = await client.completions.create(model="stub", prompt="hello", max_tokens=9)
        models = [model.id async for model in client.models.list()]

    assert whole.choices[0].message.content == streamed == reference
    assert text.usage.completion_tokens <= 9
    assert models == ["stub"]


def test_models_are_listed_and_retrieved(client):
    """models.list and models.retrieve tell the served model with its window; another is not found."""
    assert [model.id for model in client.models.list()] == ["stub"]
    assert client.models.retrieve("stub").max_model_len == 4096
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_usage_comes_only_when_asked_for(client):
    """A stream tells usage in its last chunk when asked, and no chunk tells it otherwise; ids neither."""
    silent = list(client.chat.completions.create(model="stub", messages=SAID, stream=True))
    options = {"include_usage": True}
    told = list(client.chat.completions.create(model="stub", messages=SAID, stream=True, stream_options=options))

    assert all(chunk.usage is None for chunk in silent)
    assert all(chunk.choices for chunk in silent)
    assert [chunk.usage for chunk in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].choices == []
    assert told[-1].usage.prompt_tokens == prompt_tokens(chat("hello"))
    assert not any(getattr(chunk.choices[0], "token_ids", None) for chunk in silent)


def test_raw_response_has_the_headers(client, house):
    """with_raw_response shows the request id (that of the journal), the replica and the overhead, also of errors."""
    plain = client.chat.completions.with_raw_response.create(model="stub", messages=SAID)
    stream = client.chat.completions.with_raw_response.create(model="stub", messages=SAID, stream=True)
    list(stream.parse())
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=SAID)

    for raw in (plain, stream):
        assert house.gateway.settled(raw.headers["x-request-id"])["ending"] == "finished"
        assert raw.headers["x-holdfast-replica"] == house.active.url.removeprefix("http://")
        assert 0 < float(raw.headers["x-holdfast-overhead-ms"]) < 5000
    assert missing.value.response.headers["x-request-id"].startswith("req-")


def test_errors_are_the_sdks_own(client, house):
    """A wrong key, an unknown model and a bad field raise the SDK's classes, with OpenAI's body."""
    with client_of(house, "hf-nobody") as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.chat.completions.create(model="stub", messages=SAID)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=SAID)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="stub", messages=SAID, max_tokens=-1)

    assert unknown.value.code == "invalid_api_key"
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert (bad.value.param, bad.value.type) == ("max_tokens", "invalid_request_error")


def test_spent_budget_is_asked_for_once(house):
    """A key that cannot pay gets 402 budget_exceeded, and the SDK does not try again."""
    key = house.gateway.key("poor", 5)
    before = house.active.stats()["requests"]

    with client_of(house, key) as client, pytest.raises(openai.APIStatusError) as spent:
        client.chat.completions.create(model="stub", messages=SAID)

    assert (spent.value.status_code, spent.value.code) == (402, "budget_exceeded")
    assert "retry-after" not in spent.value.response.headers
    assert len(until(lambda: house.gateway.settlements(key))) == 1
    assert house.active.stats()["requests"] == before


def test_held_budget_is_worth_another_try(house):
    """A budget that another request holds is answered 429 with Retry-After, and the SDK's own retry gets through."""
    said = [{"role": "user", "content": order(tokens=60, tokens_per_s=40)}]
    needs = prompt_tokens({"messages": said})
    key = house.gateway.key("busy", 2 * needs + 61)  # one such request, or two prompts and hardly more

    with client_of(house, key, max_retries=0) as client, client_of(house, key, max_retries=4) as patient:
        options = {"model": "stub", "messages": said, "max_tokens": needs + 60}
        stream = client.chat.completions.create(**options, stream=True)
        next(stream)
        with pytest.raises(openai.RateLimitError) as held:
            client.chat.completions.create(model="stub", messages=said, max_tokens=1)
        retried = patient.chat.completions.create(model="stub", messages=said, max_tokens=1)
        stream.close()

    assert held.value.code == "budget_held"
    assert 1 <= int(held.value.response.headers["retry-after"]) <= 60
    assert retried.usage.completion_tokens == 1


def test_failing_servers_are_an_internal_server_error(client, house):
    """When every server fails, the SDK raises InternalServerError with the gateway's words."""
    for stub in (house.active, house.standby):
        stub.arm("status", times=4, status=500)
    try:
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="stub", messages=SAID)
    finally:
        for stub in (house.active, house.standby):
            stub.arm(None)

    assert failed.value.status_code == 502
    assert failed.value.code == "upstream_error"


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_stream_that_cannot_go_on_is_never_a_success(client, house, kind):
    """A broken stream whose feature cannot continue raises APIError with a code, not a silent end."""
    house.active.arm("cut", at=8)
    options = {"model": "stub", "stream": True, "seed": 1, "temperature": 0.7, "max_tokens": 60}
    if kind == "chat":
        stream = client.chat.completions.create(messages=SAID, **options)
    else:
        stream = client.completions.create(prompt="hello", **options)

    got = []
    with pytest.raises(openai.APIError, match="seed") as broken:
        got.extend(stream)

    assert len(got) >= 8
    assert broken.value.code == "uncontinuable"
