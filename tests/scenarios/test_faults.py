"""Whatever a server does wrong, the client's stream goes on as if nothing had happened, or says that it cannot."""

from collections.abc import Callable, Iterator

import pytest

from loadtests.processes import start_stub
from loadtests.stub_orders import FAULTS
from tests.processes import ForkedGateway as Gateway
from tests.processes import until
from tests.readme import table
from tests.scenarios.asking import (
    CHAT,
    TEXT,
    House,
    ask,
    chat,
    error,
    header,
    ids_of,
    order,
    plain,
    prompt_tokens,
    request_id,
    text_of,
    undisturbed,
    usage,
)  # fmt: skip

ROWS = {row["fault"].strip("`"): row for row in table("Each fault, and how it ends", "docs/failover.md")}
GOES_ON, ANEW, TOTAL, AS_EVER = "goes on", "is asked for anew", "ends by `total_s`", "is as ever"
AT = {"comments_only": 0}  # else comments come after tokens as before them
LATE = 11  # where a stream is lost that has begun


def ending(kind: str, *ends: str) -> list[str]:
    """The faults after which answers of that kind end so, as documented."""
    return [fault for fault, row in ROWS.items() if row[kind] in ends]


@pytest.fixture(params=["tokenizer", "discovery"])
def either(request) -> House:
    """Both ways to make text after a loss."""
    return request.getfixturevalue("house" if request.param == "tokenizer" else "discovering_house")


@pytest.fixture(scope="module")
def hasty(stubs, tokenizer, tmp_path_factory) -> Iterator[House]:
    """A house whose requests may take a second at most."""
    folder = tmp_path_factory.mktemp("hasty")
    with Gateway(folder, [one.url for one in stubs], tokenizer=tokenizer, timeouts={"total_s": 1.0}) as gateway:
        yield House(gateway, *stubs, gateway.key("somebody"))
        assert gateway.faults() == []


@pytest.fixture(autouse=True)
def disarmed(house) -> Iterator[None]:
    """Leave nothing armed, and both servers in use."""
    yield
    house.active.arm(None)
    house.standby.arm(None)
    until(lambda: house.gateway.get("/readyz")[0] == 200)


def test_every_fault_of_the_stub_is_documented_and_tried():
    """The table has the stub's faults, in its words; each row's endings are ones that a test below has shown."""
    assert {fault: row["what the server does"] for fault, row in ROWS.items()} == FAULTS
    assert {row["a stream"] for row in ROWS.values()} == {GOES_ON, ANEW, AS_EVER}
    assert {row["a plain answer"] for row in ROWS.values()} == {ANEW, TOTAL, AS_EVER}
    assert {fault for fault, row in ROWS.items() if not row["`cause`"]} == {*ending("a stream", AS_EVER)}


@pytest.mark.parametrize("fault", ending("a stream", GOES_ON, ANEW))
async def test_stream_goes_on_identically_elsewhere(either, fault):
    """After any loss the client has the text, ids, finish and usage of an undisturbed run, once each."""
    body = chat(order(tokens=48), max_tokens=100)
    either.active.arm(fault, at=AT.get(fault, LATE), status=503)

    seen = await ask(either.gateway, either.key, body)

    expected = await undisturbed(either.standby, body)
    assert (seen.status, seen.ended, seen.done) == (200, "clean", True)
    assert seen.ids == expected.ids
    assert seen.text == expected.text
    assert seen.finish == expected.finish == "stop"
    assert usage(seen) == usage(expected) == (prompt_tokens(body), 48)
    fact = either.gateway.settled(request_id(seen))
    assert fact["ending"] == "finished"
    assert fact["charged_tokens"] == prompt_tokens(body) + 48
    legs = [one for one in either.gateway.journal() if one.get("request_id") == request_id(seen)]
    (lost,) = [one for one in legs if one["kind"] == "leg.ended"]
    assert (f"`{lost['cause']}`", lost["lost"]) == (ROWS[fault]["`cause`"], True)
    assert fact["failovers"] == (1 if ROWS[fault]["a stream"] == GOES_ON else 0)


@pytest.mark.parametrize("fault", ending("a plain answer", ANEW, AS_EVER))
async def test_plain_answer_comes_whole(either, fault):
    """One that a server spoils from another server, what is borne from the same; charged once, by its ids."""
    body = plain(order(tokens=30))
    either.active.arm(fault, at=9)

    seen = await ask(either.gateway, either.key, body)

    assert seen.status == 200
    assert ids_of(seen) == (await undisturbed(either.standby, chat(order(tokens=30)))).ids
    fact = either.gateway.settled(request_id(seen))
    assert fact["charged_tokens"] == prompt_tokens(body) + 30
    spoilt = ROWS[fault]["a plain answer"] == ANEW
    replica = either.standby if spoilt else either.active
    assert header(seen, "x-holdfast-replica") == replica.url.removeprefix("http://")
    if spoilt:
        assert usage(seen) == (prompt_tokens(body), 30)


@pytest.mark.parametrize("fault", ending("a plain answer", TOTAL))
async def test_plain_answer_that_does_not_come_ends_in_time(hasty, fault):
    """It shows nothing on its way, so no server is suspected: the request's own limit ends it, and it costs nothing."""
    hasty.active.arm(fault)

    seen = await ask(hasty.gateway, hasty.key, plain(order(tokens=30)))

    assert (seen.status, error(seen)["code"]) == (504, "timeout")
    assert hasty.gateway.settled(request_id(seen))["charged_tokens"] == 0


@pytest.mark.parametrize("fault", ending("a stream", AS_EVER))
async def test_harmless_fault_is_borne(either, fault):
    """Dripping bytes, wrong or missing usage change no token and no charge, and cost no failover."""
    body = chat(order(tokens=40))
    either.active.arm(fault, bytes=2 << 20)

    seen = await ask(either.gateway, either.key, body)

    expected = await undisturbed(either.standby, body)
    assert seen.done
    assert seen.ids == expected.ids
    assert seen.finish == "stop"
    fact = either.gateway.settled(request_id(seen))
    assert fact["charged_tokens"] == prompt_tokens(body) + 40
    assert fact["failovers"] == 0
    assert header(seen, "x-holdfast-replica") == either.active.url.removeprefix("http://")


async def test_completion_stream_goes_on_identically(either):
    """A completion, several choices and stop strings included, goes on as an undisturbed run."""
    said = order(tokens=30) + "<|assistant|>"  # the stub counts an answer's tokens from this marker
    for more in ({}, {"n": 3}, {"prompt": [said, "two" + said, "three" + said]}, {"stop": ["zo", "ne"]}):
        body = chat() | {"prompt": said, "max_tokens": 60, **more}
        del body["messages"]
        either.active.arm("cut", at=9)

        seen = await ask(either.gateway, either.key, body, TEXT)

        expected = await undisturbed(either.standby, body, TEXT)
        assert (seen.done, seen.ended) == (True, "clean")
        for index in range(3):
            assert ids_of(seen, index) == ids_of(expected, index)
            assert text_of(seen, index) == text_of(expected, index)
        fact = either.gateway.settled(request_id(seen))
        assert fact["failovers"] == 1
        assert fact["charged_tokens"] == sum(usage(expected))


@pytest.mark.parametrize("delivered", [True, False])
async def test_when_all_servers_fail_the_stream_says_so(either, delivered):
    """A stream that no server finishes ends with an error event, or with 502 where nothing was delivered."""
    for stub in (either.active, either.standby):
        stub.arm("cut" if delivered else "status", times=4, at=5, status=500)

    seen = await ask(either.gateway, either.key, chat(order(tokens=60)))

    if delivered:
        assert seen.status == 200
        assert error(seen)["code"] == "upstream_lost"
        assert not seen.done
        assert seen.finish is None
    else:
        assert seen.status == 502
        assert error(seen)["code"] == "upstream_error"
    fact = either.gateway.settled(request_id(seen))
    assert fact["charged_tokens"] == (prompt_tokens(chat(order(tokens=60))) + len(seen.ids) if delivered else 0)


async def test_when_all_servers_fail_a_plain_answer_is_502(either):
    """A plain answer that no server gives is 502 with OpenAI's error, charged nothing."""
    for stub in (either.active, either.standby):
        stub.arm("cut", times=4, at=5)

    seen = await ask(either.gateway, either.key, plain(order(tokens=60)))

    assert seen.status == 502
    assert error(seen)["code"] == "upstream_error"
    assert either.gateway.settled(request_id(seen))["charged_tokens"] == 0


FEATURES = {
    "seed": {"seed": 3, "temperature": 0.9},
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "presence_penalty": {"presence_penalty": 0.5},
    "bad_words": {"bad_words": ["never"]},
    "min_p_of_tomorrow": {"min_p_of_tomorrow": 1},
}


@pytest.mark.parametrize("feature", FEATURES)
async def test_what_cannot_go_on_exactly_says_its_name(house, feature):
    """A lost stream whose feature depends on the dead server's state ends with an error that names the feature."""
    house.active.arm("cut", at=7)

    seen = await ask(house.gateway, house.key, chat(order(tokens=50), **FEATURES[feature]))

    said = error(seen)
    assert feature in said["message"]
    assert said["code"] == "uncontinuable"
    assert not seen.done
    assert len(seen.ids) == 7
    assert house.gateway.settled(request_id(seen))["ending"] == "uncontinuable"


@pytest.mark.parametrize("feature", FEATURES)
async def test_what_cannot_go_on_begins_anew_while_nothing_was_delivered(house, feature):
    """Before the first token any request may begin anew elsewhere."""
    house.active.arm("status", status=503)

    seen = await ask(house.gateway, house.key, chat(order(tokens=20), **FEATURES[feature]))

    assert seen.done
    assert header(seen, "x-holdfast-replica") == house.standby.url.removeprefix("http://")


async def test_metrics_move_as_they_should(house):
    """One failed-over stream, one plain answer and one refusal move each metric by exactly what happened."""
    body, stub = chat(order(tokens=30)), {"model": "stub"}
    before: Callable[..., float] = _frozen(house)
    house.active.arm("cut", at=10)

    seen = await ask(house.gateway, house.key, body)
    await ask(house.gateway, house.key, plain(order(tokens=12)))
    await ask(house.gateway, house.key, chat(model="nobody"))
    await ask(house.gateway, "hf-wrong", body)
    house.gateway.settled(request_id(seen))

    def moved(name: str, **labels: str) -> float:
        return house.gateway.metric(name, **labels) - before(name, **labels)

    prompts = prompt_tokens(body) + prompt_tokens(plain(order(tokens=12)))
    assert moved("holdfast_requests_total", **stub, ending="finished") == 2
    assert moved("holdfast_tokens_total", **stub, kind="prompt") == prompts
    assert moved("holdfast_tokens_total", **stub, kind="completion") == 42
    assert moved("holdfast_tokens_total", **stub, kind="recomputed") == prompt_tokens(body) + 10
    assert moved("holdfast_failovers_total", **stub, cause="broken") == 1
    assert moved("holdfast_failover_gap_seconds_count") == 1
    assert 0 < moved("holdfast_failover_gap_seconds_sum") < 1
    assert moved("holdfast_time_to_first_token_seconds_count", **stub) >= 1
    assert moved("holdfast_inter_token_seconds_count", **stub) == 29
    assert moved("holdfast_added_latency_seconds_count") == 2
    assert moved("holdfast_legs_total", end="broken") == 1
    assert moved("holdfast_legs_total", end="done") == 2
    assert moved("holdfast_refusals_total", reason="model_not_found") == 1
    assert moved("holdfast_refusals_total", reason="invalid_api_key") == 1
    assert house.gateway.metric("holdfast_holds") == 0
    assert house.gateway.metric("holdfast_requests_in_flight") == 0


def _frozen(house: House) -> Callable[..., float]:
    """The metrics as they are now."""
    samples = house.gateway.metrics()

    def value(name: str, **labels: str) -> float:
        def matches(sample: str) -> bool:
            return sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items())

        return sum(value for sample, value in samples.items() if matches(sample))

    return value


async def test_killed_server_is_left_within_a_second(start_gateway, tokenizer):
    """kill -9 of the active server in mid-stream: identical text, a pause below a second, and it is not asked again."""
    body = chat(order(tokens=80, tokens_per_s=60))
    with start_stub() as doomed, start_stub() as heir:
        gateway = start_gateway([doomed.url, heir.url], tokenizer=tokenizer)

        def kill_once(seen) -> bool:
            if len(seen.ids) >= 20:
                doomed.kill()
            return False

        seen = await ask(gateway, None, body, until=kill_once)
        again = await ask(gateway, None, body, CHAT)

        assert seen.ids == again.ids
        assert seen.text == again.text
        fact = gateway.settled(request_id(seen))
        assert fact["failovers"] == 1
        assert fact["gap_ms"] < 1000
        assert header(again, "x-holdfast-replica") == heir.url.removeprefix("http://")
