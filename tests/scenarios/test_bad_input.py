"""Bad requests, hostile or careless, are refused in OpenAI's shape, and tell neither server nor log anything."""

import asyncio
import gzip
import json
import re
from contextlib import suppress
from typing import Any

import pytest

from loadtests.processes import start_stub
from tests.loadtests.raw_client import Seen
from tests.processes import Gateway, until
from tests.scenarios.asking import CHAT, TEXT, House, ask, chat, error, order, plain, request_id

HELLO = {"model": "stub", "messages": [{"role": "user", "content": "hello"}]}


async def send(gateway: Gateway, data: bytes, *more: bytes, pause_s: float = 0.0) -> Seen:
    """Send bytes as they are, piece by piece, and read until the gateway hangs up or falls silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    got = b""
    try:
        for piece in (data, *more):
            writer.write(piece)
            await asyncio.sleep(pause_s)
        async with asyncio.timeout(2):
            while piece := await reader.read(1 << 16):
                got += piece
    except (TimeoutError, ConnectionResetError, BrokenPipeError):
        pass
    finally:
        writer.transport.abort()
    head, _, body = got.partition(b"\r\n\r\n")
    return Seen(head=head, body=body)


def post(key: str, body: bytes, *headers: str, version: str = "1.1", length: int | None = None) -> bytes:
    """A POST to the chat endpoint that asks for the connection to be closed."""
    size = len(body) if length is None else length
    lines = [f"POST {CHAT} HTTP/{version}", "Host: x", f"Authorization: Bearer {key}", "Connection: close"]
    lines += [f"Content-Length: {size}"] if length != -1 else []
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


BAD_BODIES: dict[str, tuple[str, Any, str | None]] = {
    "no JSON": (CHAT, b"{model: stub", None),
    "not UTF-8": (CHAT, b'{"model":"\xff"}', None),
    "no object": (CHAT, b"[1,2]", None),
    "nothing": (CHAT, b"", None),
    "deep nesting": (CHAT, b"[" * 100_000, None),
    "no model": (CHAT, {"messages": []}, "model"),
    "model is a number": (CHAT, HELLO | {"model": 7}, "model"),
    "no messages": (CHAT, {"model": "stub"}, "messages"),
    "messages is text": (CHAT, HELLO | {"messages": "hi"}, "messages"),
    "message is text": (CHAT, HELLO | {"messages": ["hi"]}, "messages"),
    "stream is text": (CHAT, HELLO | {"stream": "yes"}, "stream"),
    "max_tokens below zero": (CHAT, HELLO | {"max_tokens": -5}, "max_tokens"),
    "max_tokens of zero": (CHAT, HELLO | {"max_completion_tokens": 0}, "max_completion_tokens"),
    "max_tokens is huge": (CHAT, HELLO | {"max_tokens": 10**30}, "max_tokens"),
    "n of zero": (CHAT, HELLO | {"n": 0}, "n"),
    "n is many": (CHAT, HELLO | {"n": 10_000}, "n"),
    "stop is empty": (CHAT, HELLO | {"stop": [""]}, "stop"),
    "stop is many": (CHAT, HELLO | {"stop": ["x"] * 999}, "stop"),
    "no prompt": (TEXT, {"model": "stub"}, "prompt"),
    "prompt is a number": (TEXT, {"model": "stub", "prompt": 7}, "prompt"),
    "prompt is empty": (TEXT, {"model": "stub", "prompt": []}, "prompt"),
    "prompts are many": (TEXT, {"model": "stub", "prompt": ["x"] * 999}, "prompt"),
    "kv_transfer_params": (CHAT, HELLO | {"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params"),
    "ec_transfer_params": (CHAT, HELLO | {"ec_transfer_params": {}}, "ec_transfer_params"),
    "prompt_embeds": (TEXT, {"model": "stub", "prompt": "x", "prompt_embeds": "AAAA"}, "prompt_embeds"),
    "our own xargs": (CHAT, HELLO | {"vllm_xargs": {"holdfast_resume": 1}}, "vllm_xargs"),
    "image by URL": (
        CHAT,
        HELLO | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/"}}]}]},
        "messages",
    ),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_bad_body_is_refused_by_name(house, name):
    """A body that is no request is 400, names its field, and no server hears of it."""
    path, body, param = BAD_BODIES[name]
    before = house.active.stats()["requests"]

    seen = await ask(house.gateway, house.key, body, path)

    said = error(seen)
    assert seen.status == 400
    assert said["type"] == "invalid_request_error"
    assert said["param"] == param
    assert param is None or param in said["message"]
    assert house.active.stats()["requests"] == before


async def test_unknown_model_is_404(house):
    """A model that is not served is 404 and names those that are, cut short where the name is absurd."""
    seen = await ask(house.gateway, house.key, chat(model="x" * 50_000))

    assert seen.status == 404
    assert error(seen)["code"] == "model_not_found"
    assert "stub" in error(seen)["message"]
    assert len(error(seen)["message"]) < 300


@pytest.mark.parametrize("body", [chat("word " * 5000), plain("word " * 5000)], ids=["streamed", "plain"])
async def test_prompt_beyond_the_window_is_refused_without_a_server(house, body):
    """A prompt beyond the window is 400 in OpenAI's words; no server is asked for it, and nothing charged."""
    seen = await ask(house.gateway, house.key, body)

    assert seen.status == 400
    assert "maximum context length" in error(seen)["message"]
    assert error(seen)["type"] == "invalid_request_error"
    fact = house.gateway.settled(request_id(seen))
    assert (fact["charged_tokens"], fact["ending"]) == (0, "refused")
    legs = [one for one in house.gateway.journal() if one.get("request_id") == request_id(seen)]
    assert [one["kind"] for one in legs] == ["request.settled"]


async def test_body_over_the_limit_is_413_before_it_is_sent(house):
    """A Content-Length over the limit is refused while the body is still to come; its sender can read why."""
    seen = await send(house.gateway, post(house.key, b"{", length=1 << 30), *[b" " * 65536] * 4, pause_s=0.1)

    assert seen.status == 413
    assert error(seen)["code"] == "request_too_large"


async def test_endless_chunked_body_is_413(house):
    """A body without a length is cut off at the limit."""
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"

    seen = await send(house.gateway, post(house.key, b"", "Transfer-Encoding: chunked", length=-1), *[piece] * 20)

    assert seen.status == 413


async def test_gzip_bomb_is_413_and_gzip_is_read(house):
    """A compressed body is understood, and limited by what it unpacks to."""
    bomb, fine = gzip.compress(b" " * (64 << 20)), gzip.compress(json.dumps(HELLO).encode())

    burst = await send(house.gateway, post(house.key, bomb, "Content-Encoding: gzip"))
    seen = await send(house.gateway, post(house.key, fine, "Content-Encoding: gzip"))
    broken = await send(house.gateway, post(house.key, b"\x1f\x8bnonsense", "Content-Encoding: gzip"))

    assert burst.status == 413
    assert seen.status == 200
    assert broken.status == 400


SMUGGLED = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
CLOSE = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
HEADS: dict[str, tuple[bytes, int]] = {
    "a header of 64 KB": (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 65536 + b"\r\n\r\n", 400),
    "500 headers": (
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 500 + b"\r\n",
        400,
    ),
    "a long request line": (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "nonsense": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", 400),
    "bare line feeds": (b"GE T /health\nHost x\n\n\r\n\r\n", 400),
    "no number of bytes": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n", 400),
    "a negative length": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "two lengths": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400,
    ),
    "length and chunked": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + SMUGGLED,
        400,
    ),
    "an unknown path": (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "the engine's own path": (b"POST /sleep" + CLOSE + b"Content-Length: 0\r\n\r\n", 404),
    "metrics in public": (b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "an escaped path": (b"GET /v1/models/..%2f..%2fmetrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 401),
    "a wrong method": (b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "a method for others": (b"PATCH /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "an unknown method": (b"BREW /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
async def test_absurd_head_is_answered_in_openais_shape(house, name):
    """Whatever a client calls HTTP gets a status and OpenAI's error body, and the gateway lives on."""
    data, status = HEADS[name]

    seen = await send(house.gateway, data)

    assert seen.status == status
    assert error(seen)["message"]
    assert house.gateway.get("/health")[0] == 200


async def test_steering_fields_never_reach_a_server(house):
    """priority, cache_salt, request ids and foreign headers of a client stay here; the trace and our id go on."""
    said = {"priority": -9, "cache_salt": "mine", "request_id": "theirs", "session_id": "s"}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x_request_id": "theirs", "x_evil": "1", "cookie": "a=b", "openai_organization": "o"}

    seen = await ask(house.gateway, house.key, chat("steered", **said), traceparent=trace, **headers)

    got = house.active.stats()["recorded"][-1]
    assert got["body"]["messages"][0]["content"] == "steered"
    assert not {"priority", "request_id", "session_id"} & set(got["body"])
    assert got["body"]["cache_salt"] != "mine"
    assert set(got["headers"]) == {"host", "content-type", "content-length", "x-request-id", "traceparent"}
    assert got["headers"]["x-request-id"] == request_id(seen) != "theirs"
    assert got["headers"]["traceparent"] == trace


async def test_cache_salt_differs_by_org_and_stays_for_one(house):
    """Two keys of one org share a cache_salt; another org has another."""
    salts = []
    for user, org in (("a", "red"), ("b", "red"), ("c", "blue"), ("red", None)):
        await ask(house.gateway, house.gateway.key(user, org=org), plain(order(tokens=2)))
        salts.append(house.active.stats()["recorded"][-1]["body"]["cache_salt"])

    assert salts[0] == salts[1]
    assert len({*salts}) == 3
    assert all(len(salt) == 32 for salt in salts)


async def test_other_fields_go_upstream_as_they_are(house):
    """What describes the generation reaches the server unchanged, also what the gateway never heard of."""
    more = {"temperature": 0.25, "top_p": 0.5, "logit_bias": {"5": -1}, "future_field": {"a": [1, None]}}

    await ask(house.gateway, house.key, plain(order(tokens=2), **more))

    got = house.active.stats()["recorded"][-1]["body"]
    assert {name: got[name] for name in more} == more


async def test_expect_100_continue_is_answered_first(house):
    """A client that waits for 100 Continue gets it and then its answer; over the limit it gets 413 at once."""
    body = json.dumps(HELLO).encode()
    seen = await send(house.gateway, post(house.key, b"", "Expect: 100-continue", length=len(body)), body)
    large = await send(house.gateway, post(house.key, b"", "Expect: 100-continue", length=1 << 30))

    assert seen.head == b"HTTP/1.1 100 Continue"
    assert seen.body.startswith(b"HTTP/1.1 200 OK")
    assert large.status == 413


@pytest.mark.parametrize("stream", [True, False])
async def test_http_1_0_client_is_served(house, stream):
    """A client of HTTP/1.0 gets its answer without chunks, ended by the connection's end."""
    body = json.dumps(HELLO | {"stream": stream}).encode()

    seen = await send(house.gateway, post(house.key, body, version="1.0"))

    assert seen.status == 200
    assert b"transfer-encoding" not in seen.head.lower()
    assert seen.done if stream else json.loads(seen.body)["choices"]


async def test_keys_are_asked_for(house):
    """No key, a wrong scheme and strange bytes are 401, never 500."""
    for given in (None, "", "hf-" + "x" * 200, "\xe9clair"):
        seen = await ask(house.gateway, given, HELLO)
        assert seen.status == 401
        assert error(seen)["code"] == "invalid_api_key"
    basic = await ask(house.gateway, None, HELLO, authorization=f"Basic {house.key}")
    assert basic.status == 401


async def test_slow_body_is_408(start_gateway, house):
    """A client that never finishes its body is sent away."""
    gateway = start_gateway([house.active.url], timeouts={"body_s": 0.2})

    seen = await send(gateway, post("none", b"{", length=50))

    assert seen.status == 408


@pytest.mark.parametrize("discovery", [False, True])
@pytest.mark.parametrize("body", [chat(order(tokens=3)), plain(order(tokens=3))], ids=["streamed", "plain"])
async def test_gateway_waits_for_a_server_that_comes_later(start_gateway, discovery, body):
    """Without its server the gateway starts, says on /readyz why it is not ready, answers 503, and recovers."""
    with start_stub() as first:
        port, url = first.port, first.url
    gateway = start_gateway([url], discovery=discovery, wait=False, timeouts={"probe_every_s": 0.1})
    until(lambda: gateway.get("/health")[0] == 200)

    status, why = gateway.get("/readyz")
    refused = await ask(gateway, None, body)
    with start_stub(port=port):
        until(lambda: gateway.get("/readyz")[0] == 200, 5)
        served = await ask(gateway, None, body)

    assert status == 503
    assert f"127.0.0.1:{port}" in json.loads(why)["why"][0]
    assert refused.status == 503
    assert error(refused)["code"] == "no_replica"
    assert served.status == 200


def test_log_holds_no_bug_and_no_secret(house: House):
    """After all of it the log has no traceback, no Authorization value and no key."""
    assert "request.malformed" in house.gateway.log()
    assert house.gateway.faults() == []


async def quoting_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A healthy server that refuses every prompt, and quotes the request in its words."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head.lower())
            asked = await reader.readexactly(int(length[1])) if length else b""
            status, said = "200 OK", b'{"object":"list","data":[{"id":"stub","max_model_len":1000}]}'
            if length:
                error = {"message": f"I do not like {asked.decode()}", "type": "BadRequestError", "code": 400}
                status, said = "400 Bad Request", json.dumps({"error": error}).encode()
            kind = "content-type: application/json\r\n"
            writer.write(f"HTTP/1.1 {status}\r\n{kind}content-length: {len(said)}\r\n\r\n".encode() + said)


@pytest.mark.parametrize("budget", [None, 900], ids=["asked", "counted before"])
@pytest.mark.parametrize("make", [chat, plain])
async def test_servers_words_reach_the_client_and_not_the_log(start_gateway, make, budget):
    """A server's refusal, which may quote the prompt, is the client's to read; neither log nor journal has it."""
    listener = await asyncio.start_server(quoting_server, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    gateway = await asyncio.to_thread(start_gateway, [url])

    seen = await ask(gateway, gateway.key("private", budget), make("my secret marker"))

    assert seen.status == 400
    assert "my secret marker" in error(seen)["message"]
    await asyncio.to_thread(gateway.stop)
    listener.close()
    assert request_id(seen) in gateway.log()
    assert "marker" not in gateway.log()
    assert all("marker" not in file.read_text(errors="replace") for file in gateway.data.glob("*") if file.is_file())
