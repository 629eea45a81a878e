"""SIGTERM: nobody new, those inside finish or are told why not, everything is settled, and the exit status is 0."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.loadtests.raw_client import Client, Seen
from tests.processes import Gateway, until
from tests.scenarios.asking import (
    CHAT,
    ask,
    chat,
    error,
    header,
    ids_of,
    order,
    plain,
    prompt_tokens,
    request_id,
    stop_reasons,
)

pytestmark = pytest.mark.slow

LONG_S = 60  # no test waits for it
LATE_S = 4.0  # longer than an end that waits for nobody
QUICK_S = 15.0  # generous on a starved machine, and far below LONG_S


def slowly(tokens: int, per_s: float) -> str:
    return order(tokens=tokens, tokens_per_s=per_s)


def held(gateway: Gateway) -> int:
    return sum(one.held for one in gateway.balances())


def ended(gateway: Gateway) -> tuple[int, float]:
    """(exit status, seconds waited for it)"""
    begin_s = time.monotonic()
    return gateway.process.wait(LONG_S), time.monotonic() - begin_s


async def started(gateway: Gateway, key: str, *bodies: dict[str, Any]) -> list["asyncio.Task[Seen]"]:
    """Requests of which each has a hold."""
    tasks = [asyncio.create_task(ask(gateway, key, body)) for body in bodies]
    await asyncio.to_thread(until, lambda: gateway.metric("holdfast_holds") == len(bodies))
    return tasks


async def test_running_requests_finish_and_new_ones_go_elsewhere(start_gateway, house):
    """After SIGTERM streams and plain answers come whole; the port refuses, open connections get a 503 and a close."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": LONG_S})
    key = gateway.key("patient", 100_000)
    async with Client(gateway.port) as kept:
        before = await kept.ask("/health")
        running = await started(
            gateway,
            key,
            chat(slowly(60, 20)),
            chat(slowly(60, 20), n=2),
            plain(slowly(60, 20)),
            chat(order(ttft_s=2.5)),
        )

        gateway.terminate()
        await asyncio.to_thread(until, lambda: gateway.get("/readyz", gateway.admin_url)[0] == 503)
        why = json.loads(gateway.get("/readyz", gateway.admin_url)[1])["why"]
        refused = await kept.ask(CHAT, plain(), headers={"authorization": f"Bearer {key}"})
        with pytest.raises(OSError):  # noqa: PT011 - nothing listens, or what listened is gone
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
        answers = await asyncio.gather(*running)
    status, _ = await asyncio.to_thread(ended, gateway)

    assert before.status == 200
    assert why == ["the gateway is stopping"]
    assert (refused.status, error(refused)["code"], header(refused, "connection")) == (503, "overloaded", "close")
    assert [(seen.status, seen.ended) for seen in answers] == [(200, "clean")] * 4
    assert [len(ids_of(seen)) for seen in answers[:3]] == [60, 120, 60]
    assert status == 0
    facts = gateway.settlements(key)
    assert [fact["ending"] for fact in facts] == ["finished"] * 4
    assert gateway.balance(key).held == 0
    assert gateway.balance(key).spent == sum(fact["charged_tokens"] for fact in facts)


async def test_what_runs_beyond_the_deadline_is_ended_visibly(start_gateway, house):
    """At the deadline a stream ends with an error event that says so, others with a 503; each pays what it got."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": 0.5})
    key = gateway.key("endless", 100_000)
    body = chat(slowly(3000, 40))
    running = await started(gateway, key, body, plain(slowly(3000, 40)), chat(order(tokens=9, ttft_s=LONG_S)))
    await asyncio.sleep(0.5)

    gateway.terminate()
    stream, whole, waiting = await asyncio.gather(*running)
    status, took_s = await asyncio.to_thread(ended, gateway)

    assert (stream.status, stream.ended, stream.done) == (200, "clean", False)
    assert error(stream)["code"] == "stopped"
    assert "stopping" in error(stream)["message"]
    assert stream.ids
    assert stop_reasons(stream) == []
    for seen in (whole, waiting):
        assert (seen.status, error(seen)["code"], header(seen, "connection")) == (503, "overloaded", "close")
    assert (status, took_s < QUICK_S) == (0, True)
    assert gateway.settled(request_id(stream))["ending"] == "stopped"
    assert gateway.balance(key).held == 0
    assert gateway.balance(key).spent == prompt_tokens(body) + len(stream.ids)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once_and_still_settles(start_gateway, house, second):
    """Whoever asks twice is not made to wait; the stream is told, and pays what it got."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": LONG_S})
    body, key = chat(slowly(4000, 40)), gateway.key("cut short", 100_000)
    (running,) = await started(gateway, key, body)
    await asyncio.sleep(0.5)

    gateway.terminate()
    await asyncio.to_thread(until, lambda: gateway.get("/readyz", gateway.admin_url)[0] == 503)
    gateway.process.send_signal(second)
    seen = await running
    status, took_s = await asyncio.to_thread(ended, gateway)

    assert (status, took_s < QUICK_S) == (0, True)
    assert error(seen)["code"] == "stopped"
    assert gateway.balance(key).spent == prompt_tokens(body) + len(seen.ids)
    assert gateway.balance(key).held == 0


async def test_idle_connections_hold_nobody_up(start_gateway, house):
    """Connections on which nothing is asked, or nothing yet, are hung up on; SIGINT is as good as SIGTERM."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": LONG_S})
    clients = [Client(gateway.port) for _ in range(5)] + [Client(gateway.admin_port)]
    for client in clients:
        assert (await client.ask("/readyz")).status == 200
    silent = socket.create_connection(("127.0.0.1", gateway.port))

    gateway.process.send_signal(signal.SIGINT)
    status, took_s = await asyncio.to_thread(ended, gateway)

    assert (status, took_s < QUICK_S) == (0, True)
    silent.close()
    for client in clients:
        await client.close()


@pytest.fixture
def stub() -> Iterator[StubProcess]:
    """A server of one's own, whose tokens can be counted."""
    with start_stub() as stub:
        yield stub


ENDLESS = chat(order(tokens=4000), n=10)  # more than all buffers on the way hold


async def unread_stream(gateway: Gateway, key: str, stub: StubProcess) -> socket.socket:
    """A client that asks for a stream and reads nothing of it, until no buffer on the way takes any more."""
    handle = socket.socket()
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    handle.connect(("127.0.0.1", gateway.port))
    data = json.dumps(ENDLESS).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(data)}\r\n\r\n"
    handle.sendall(head.encode() + data)
    said = [0]
    while said[-1] == 0 or said[-1] != said[max(0, len(said) - 5)]:
        await asyncio.sleep(0.2)
        said.append(await asyncio.to_thread(lambda: stub.stats()["tokens_sent_total"]))
    assert gateway.metric("holdfast_holds") == 1
    return handle


async def test_a_client_that_does_not_read_delays_nobody_beyond_the_deadline(start_gateway, stub):
    """A stream that its client does not read is ended at the deadline, and charged within the budget."""
    gateway: Gateway = start_gateway([stub.url], timeouts={"drain_s": 1})
    key = gateway.key("deaf", 100_000)
    handle = await unread_stream(gateway, key, stub)

    gateway.terminate()
    status, took_s = await asyncio.to_thread(ended, gateway)
    handle.close()

    assert (status, took_s < QUICK_S) == (0, True)
    assert gateway.balance(key).held == 0
    (fact,) = gateway.settlements(key)
    assert 0 < fact["charged_tokens"] == gateway.balance(key).spent <= 100_000


async def test_a_slow_reader_gets_the_rest_within_the_deadline(start_gateway, stub):
    """What a finished stream has left for a slow client is sent before the end, not thrown away with the process."""
    gateway: Gateway = start_gateway([stub.url], timeouts={"drain_s": LONG_S})
    key = gateway.key("slow", 100_000)
    handle = await unread_stream(gateway, key, stub)

    gateway.terminate()
    got = await asyncio.to_thread(read_late, gateway, handle)
    status, _ = await asyncio.to_thread(ended, gateway)

    assert status == 0
    assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def read_late(gateway: Gateway, handle: socket.socket) -> bytes:
    """Read until the gateway has done its part, then nothing for a while, then the rest."""
    handle.settimeout(LONG_S)
    got = b""
    while not any(fact["kind"] == "request.settled" for fact in gateway.journal()):
        for _ in range(16):  # less than the buffer that is left in the gateway
            got += handle.recv(4096)
    time.sleep(LATE_S)
    while data := handle.recv(1 << 16):
        got += data
    handle.close()
    return got


async def test_a_body_that_does_not_come_is_not_waited_for_beyond_the_deadline(start_gateway, house):
    """A request whose body is still to come when the deadline is over is cut off; nothing was held for it."""
    gateway: Gateway = start_gateway([house.active.url], timeouts={"drain_s": 0.2})
    key = gateway.key("drip", 1000)
    handle = socket.create_connection(("127.0.0.1", gateway.port))
    handle.sendall(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 9\r\n\r\n{{".encode()
    )
    await asyncio.sleep(0.3)

    gateway.terminate()
    status, took_s = await asyncio.to_thread(ended, gateway)
    handle.close()

    assert (status, took_s < QUICK_S) == (0, True)
    assert [one.held for one in gateway.balances()] in ([], [0])
