"""A client that is gone costs nothing more, and one that does not read cannot fill the gateway."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.loadtests.raw_client import Seen
from tests.processes import Gateway, until
from tests.scenarios.asking import CHAT, House, ask, chat, error, order, plain, prompt_tokens, request_id

NOTICED_S_MAX = 0.5
RSS_GROWTH_MAX = 24 << 20


def aborts(stub: StubProcess) -> list[dict[str, Any]]:
    """What the stub's clients hung up on."""
    given: list[dict[str, Any]] = stub.stats()["aborted"]
    return given


def raw_request(key: str | None, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nAuthorization: Bearer {key}\r\n\r\n"
    return head.encode() + data


def start_reading(gateway: Gateway, key: str | None, body: dict[str, Any], buffer: int = 1 << 16) -> socket.socket:
    """Send a request on a socket of one's own, and read nothing yet."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(5)
    client.connect(("127.0.0.1", gateway.port))
    client.sendall(raw_request(key, body))
    return client


SLOW = order(tokens=300, tokens_per_s=40)
GONE = {
    "in mid-stream": (chat(SLOW), True),
    "before the first token": (chat(order(tokens=300, tokens_per_s=40, ttft_s=1.2)), False),
    "of a plain answer": (plain(SLOW), False),
    "while several choices stream": (chat(SLOW, n=3), True),
}


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("when", GONE)
async def test_upstream_is_closed_when_the_client_is_gone(house, when, how):
    """Within half a second of the client's FIN or RST its server is let go, whatever was being done."""
    body, streams = GONE[when]
    client = start_reading(house.gateway, house.key, body)
    if streams:
        assert client.recv(1 << 16)
    else:
        until(lambda: house.active.stats()["open_streams"] == 1)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    running = house.active.stats()["open_streams"]
    left_at = time.time()
    client.close()

    assert running > 0
    seen = until(lambda: [one for one in aborts(house.active) if one["unix_s"] >= left_at], 2)
    assert seen[0]["unix_s"] - left_at < NOTICED_S_MAX
    until(lambda: house.gateway.metric("holdfast_requests_in_flight") == 0, 2)
    assert house.gateway.metric("holdfast_holds") == 0
    assert house.active.stats()["open_streams"] == 0
    fact = house.gateway.settled(seen[0]["request_id"])
    assert fact["ending"] == "client_left"
    assert fact["charged_tokens"] >= prompt_tokens(body) if streams else fact["charged_tokens"] == 0


def test_client_that_reads_nothing_pauses_its_server_and_is_ended(start_gateway):
    """A client that reads nothing stops its server, fills a bounded buffer, and is hung up on after client_stall_s."""
    with start_stub(max_model_len=400_000, per_chunk=1) as stub:
        gateway = start_gateway([stub.url], timeouts={"client_stall_s": 2})
        rss_before = gateway.rss_bytes()
        client = start_reading(gateway, None, chat(order(tokens=300_000)), 4096)

        def paused() -> bool:
            first = stub.stats()["tokens_sent_total"]
            time.sleep(0.3)
            return bool(0 < first == stub.stats()["tokens_sent_total"])

        until(paused, 8)
        paused_at, sent, rss = time.monotonic(), stub.stats()["tokens_sent_total"], gateway.rss_bytes()
        until(lambda: aborts(stub), 5)

        assert time.monotonic() - paused_at < 3.5
        assert sent < 100_000
        assert rss - rss_before < RSS_GROWTH_MAX
        until(lambda: gateway.metric("holdfast_requests_in_flight") == 0)
        assert gateway.settled(aborts(stub)[0]["request_id"])["ending"] == "client_left"
        client.close()


def test_slow_reader_gets_everything(start_gateway):
    """A client that pauses, often and longer than client_stall_s in sum, gets the whole stream."""
    with start_stub(max_model_len=100_000) as stub:
        gateway = start_gateway([stub.url], timeouts={"client_stall_s": 1})
        client = start_reading(gateway, None, chat(order(tokens=40_000)), 4096)
        data, pause_at = bytearray(), 1 << 16
        while not data.endswith(b"\r\n0\r\n\r\n") and (piece := client.recv(1 << 20)):
            data += piece
            if len(data) >= pause_at:
                time.sleep(0.6)
                pause_at += 3 << 20
        client.close()

        assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert data.count(b'"finish_reason":"stop"') == 1
        facts = until(lambda: [one for one in gateway.journal() if one["kind"] == "request.settled"])
        assert [(one["ending"], one["completion_tokens"]) for one in facts] == [("finished", 40_000)]


async def test_sigterm_finishes_what_runs(start_gateway, house):
    """After SIGTERM no new client is let in, a running stream comes to its end, and the exit status is 0."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": 10})
    body = chat(order(tokens=60, tokens_per_s=40))

    seen = await ask(gateway, None, body, until=_once(lambda seen: len(seen.ids) >= 5, gateway.terminate))

    assert (seen.done, seen.ended, len(seen.ids)) == (True, "clean", 60)
    assert gateway.process.wait(5) == 0
    assert gateway.settled(request_id(seen))["ending"] == "finished"
    assert [one.held for one in gateway.balances()] == [0]


async def test_sigterm_ends_what_takes_longer_than_drain_s(start_gateway, house):
    """A stream that outlasts drain_s is ended by an error, charged what it got, and the exit status is still 0."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": 0.5})
    body = chat(order(tokens=400, tokens_per_s=40))

    seen = await ask(gateway, None, body, until=_once(lambda seen: len(seen.ids) >= 5, gateway.terminate))

    assert not seen.done
    assert error(seen)["code"] == "stopped"
    assert gateway.process.wait(5) == 0
    assert gateway.settled(request_id(seen))["charged_tokens"] == prompt_tokens(body) + len(seen.ids)
    assert [one.held for one in gateway.balances()] == [0]


def _once(when: Callable[[Seen], bool], act: Callable[[], None]) -> Callable[[Seen], bool]:
    """A condition for `ask` that never ends it, and acts once on the way."""
    done: list[bool] = []

    def look(seen: Seen) -> bool:
        if not done and when(seen):
            done.append(True)
            act()
        return False

    return look


async def test_idle_keep_alive_does_not_hold_up_the_end(start_gateway, house: House):
    """An idle kept-alive connection does not delay the end of a gateway that was told to stop."""
    gateway = start_gateway([house.active.url])
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"}")

    told_at = time.monotonic()
    status = await asyncio.to_thread(gateway.stop)

    assert status == 0
    assert time.monotonic() - told_at < 3
    writer.close()
