"""Clients that are slow, greedy or gone: each costs a bounded time, and memory that does not grow with it."""

import gzip
import json
import os
import random
import re
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loadtests.processes import start_stub
from tests.processes import Gateway, until
from tests.scenarios.asking import chat, order, plain
from tests.scenarios.sockets import connect, head, hung_up, post, reset, rest, until_has

pytestmark = pytest.mark.slow

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
MIB = 1 << 20
RSS_GROWTH_MAX = 24 * MIB
SLOW = order(tokens=300, tokens_per_s=40)


def quiet(gateway: Gateway) -> bool:
    """Whether nothing is in flight or held any more."""
    return not gateway.metric("holdfast_requests_in_flight") and not gateway.metric("holdfast_holds")


def said(answer: bytes) -> dict[str, Any]:
    """The error in the last of the answers that were read; each names its request."""
    last = answer[answer.rindex(b"HTTP/1.") :]
    top, _, body = last.partition(b"\r\n\r\n")
    assert b"x-request-id: req-" in top.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def descriptors(gateway: Gateway) -> int:
    return len(os.listdir(f"/proc/{gateway.process.pid}/fd"))


def connections(gateway: Gateway) -> int:
    """Those to the public port that the kernel keeps something for: neither listening nor waiting out its time."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{gateway.port:04X}") and row[3] not in ("0A", "06") for row in rows)


def cpu_s(gateway: Gateway) -> float:
    """Processor time used so far."""
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -------------------------------------------------------------------- that send more than one request


@pytest.mark.parametrize("kind", [plain, chat])
@pytest.mark.parametrize("second", ["refused", "expects"])
def test_request_behind_the_last_bytes_of_a_body_is_answered_after_it(house, kind, second):
    """Its answer, or leave to go on, comes neither before nor in the middle of the first one's."""
    first = post(kind(order(tokens=3)), key=house.key)
    expects = head("Content-Length: 5", "Expect: 100-continue", "Connection: close", key=house.key)
    then = {"refused": b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "expects": expects + b"{}   "}
    client = connect(house.gateway)
    client.sendall(first[:-10])
    time.sleep(0.2)  # until it waits for the rest, which nothing tells; too short a time shows less, and fails nothing

    client.sendall(first[-10:] + then[second])

    got = rest(client)
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]+)", got)
    assert statuses[:2] == [b"200", b"404" if second == "refused" else b"100"]
    end = b"\r\n0\r\n\r\n" if kind is chat else b"}HTTP"
    assert got.index(end) < got.index(b"HTTP/1.1 " + statuses[1])


def test_body_in_countless_chunks_leaves_the_connection_as_it_was(start_gateway, stubs):
    """aiohttp pauses its parser over so many, and forgets it: the next request's body must be read to its end."""
    gateway = start_gateway([stubs[0].url], timeouts={"body_s": 3})
    key = gateway.keys_create("patient")
    client = connect(gateway)
    chunks = b"".join(b"1\r\n%c\r\n" % one for one in json.dumps(plain(order(tokens=2))).encode().ljust(16_385))

    client.sendall(head("Transfer-Encoding: chunked", key=key) + chunks + b"0\r\n\r\n")
    first = until_has(client, b"}")
    client.sendall(post(plain(order(tokens=2)), "Connection: close", key=key))

    assert (first + rest(client)).count(b"HTTP/1.1 200 OK") == 2


# -------------------------------------------------------------------- that do not read


def test_hundred_megabytes_for_a_client_that_reads_nothing_stay_upstream(start_gateway):
    """Its server is paused, memory stays flat, and after client_stall_s it is hung up on, and settled."""
    with start_stub(max_model_len=10_000) as stub:
        gateway = start_gateway([stub.url], timeouts={"client_stall_s": 2})
        before = gateway.rss_bytes()
        client = connect(gateway, 4096)
        client.sendall(post(chat(order(tokens=400, pad=MIB))))
        highest, sent = before, 0
        gone: list[dict[str, Any]] = []
        deadline = time.monotonic() + 20
        while not gone and time.monotonic() < deadline:
            highest, sent = max(highest, gateway.rss_bytes()), stub.stats()["tokens_sent_total"]
            gone = stub.stats()["aborted"]
            time.sleep(0.05)

        assert 0 < sent < 100
        assert highest - before < RSS_GROWTH_MAX
        assert gateway.settled(gone[0]["request_id"])["ending"] == "client_left"
        until(lambda: quiet(gateway))
        client.close()


@pytest.mark.parametrize(
    ("body", "more"),
    [(plain(order(tokens=5, pad=32 * MIB)), []), (chat(order(tokens=12, pad=MIB)), ["Connection: close"])],
    ids=["a plain answer", "the end of a stream"],
)
def test_client_that_never_reads_what_was_written_is_hung_up_on(start_gateway, body, more):
    """Also when its answer is whole and only waits to be read: the connection does not stay."""
    with start_stub() as stub:
        settings = {"timeouts": {"client_stall_s": 1}, "limits": {"client_buffer_bytes": 64 * MIB}}
        gateway = start_gateway([stub.url], **settings)
        client = connect(gateway, 4096)
        client.sendall(post(body, *more))
        until_has(client, b"200 OK")
        until(lambda: quiet(gateway))
        begun, seen = time.monotonic(), connections(gateway)

        until(lambda: not connections(gateway), 20)

        assert (seen, time.monotonic() - begun > 0.5) == (1, True)
        client.close()


# -------------------------------------------------------------------- that send in their own way


@pytest.mark.parametrize("when", ["before the first token", "in mid-stream"])
def test_half_closed_client_has_hung_up(house, when):
    """A FIN ends the request although its sender would still read: cleanly, at once, and charged as any hang-up."""
    before = {one["request_id"] for one in house.active.stats()["aborted"]}  # of which only the latest are kept
    client = connect(house.gateway)
    client.sendall(
        post(chat(order(tokens=300, tokens_per_s=40, ttft_s=1.2 * (when != "in mid-stream"))), key=house.key)
    )
    if when == "in mid-stream":
        until_has(client, b"data: ")
    else:
        until(lambda: house.active.stats()["open_streams"] == 1)

    client.shutdown(socket.SHUT_WR)
    answer = rest(client)

    assert b"[DONE]" not in answer
    (gone,) = until(lambda: [one for one in house.active.stats()["aborted"] if one["request_id"] not in before])
    assert house.gateway.settled(gone["request_id"])["ending"] == "client_left"
    until(lambda: quiet(house.gateway))


def test_two_requests_in_one_packet(house):
    """The first is answered, the second is not, and the end of the connection says so."""
    client = connect(house.gateway)
    before = house.active.stats()["requests"]
    client.sendall(post(plain(order(tokens=2)), key=house.key) + post(plain(order(tokens=3)), key=house.key))

    answer = rest(client)

    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK") == 1
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["token_ids"]) == 2
    assert house.active.stats()["requests"] == before + 1


@pytest.mark.parametrize("behind", ["a request", "half a request", "nonsense"])
def test_what_is_sent_behind_a_running_stream_is_never_mixed_into_it(house, behind):
    """The stream ends as it would have, then the connection does; no server hears of what came behind."""
    client = connect(house.gateway)
    before = house.active.stats()["requests"]
    client.sendall(post(chat(order(tokens=120, tokens_per_s=80)), key=house.key))
    answer = until_has(client, b"data: ")
    more = {"a request": post(plain(), key=house.key), "half a request": head()[:30], "nonsense": b"\0nonsense\r\n\r\n"}
    client.sendall(more[behind])

    answer += rest(client)

    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert answer.count(b"HTTP/1.") == 1
    assert house.active.stats()["requests"] == before + 1


def test_requests_one_after_the_other_keep_their_connection(house):
    """Asked again as soon as the last byte has come, a connection answers a hundred times; line breaks between too."""
    client = connect(house.gateway)
    body = chat(order(tokens=2))
    for _ in range(100):
        client.sendall(post(body, key=house.key) + b"\r\n")
        assert b"[DONE]" in until_has(client, b"\r\n0\r\n\r\n")
    client.close()


def test_flood_behind_a_stream_costs_no_memory_and_hides_no_hang_up(start_gateway, house):
    """Fifty megabytes behind a running request are dropped as they come, and the client's end is still noticed."""
    gateway = start_gateway([house.active.url])
    client = connect(gateway)
    client.sendall(post(chat(order(tokens=4000, tokens_per_s=40, ttft_s=1.4))))
    until(lambda: gateway.metric("holdfast_requests_in_flight") == 1)
    before = gateway.rss_bytes()
    for _ in range(50):
        client.sendall(post(b"x" * MIB))
    grown = gateway.rss_bytes() - before
    in_flight = gateway.metric("holdfast_requests_in_flight")

    client.close()

    assert (grown < RSS_GROWTH_MAX, in_flight) == (True, 1)
    until(lambda: quiet(gateway))
    (fact,) = until(lambda: [one for one in gateway.journal() if one["kind"] == "request.settled"])
    assert fact["ending"] == "client_left"


def test_bomb_in_the_same_packet_hides_no_hang_up(start_gateway, house):
    """What came with a request, is not answered and unpacks to megabytes, does not hide that its client is gone."""
    gateway = start_gateway([house.active.url])
    client = connect(gateway)
    bomb = post(gzip.compress(b"x" * 64 * MIB), "Content-Encoding: gzip")
    client.sendall(post(chat(order(tokens=400, ttft_s=9))) + bomb)
    until(lambda: gateway.metric("holdfast_requests_in_flight") == 1)

    client.close()

    until(lambda: quiet(gateway), 6)
    (fact,) = until(lambda: [one for one in gateway.journal() if one["kind"] == "request.settled"])
    assert fact["ending"] == "client_left"


@pytest.mark.parametrize("how", ["drips", "stops", "never ends a chunk"])
def test_slow_body_is_408(start_gateway, house, how):
    """A body has body_s to come whole, however it is slow."""
    gateway = start_gateway([house.active.url], timeouts={"body_s": 1})
    client = connect(gateway)
    chunked = how == "never ends a chunk"
    begun, sent = time.monotonic(), 0
    client.sendall(head("Transfer-Encoding: chunked" if chunked else "Content-Length: 100000") + b"1;"[: 2 * chunked])
    client.settimeout(0.1)
    answer = b""
    while not answer and time.monotonic() - begun < 15:
        if how != "stops":
            client.sendall(b"x" * (1 + 5000 * chunked))
            sent += 1
        try:
            answer = client.recv(1 << 16)
        except TimeoutError:
            continue

    assert answer.startswith(b"HTTP/1.1 408")
    assert said(answer + rest(client))["code"] == "invalid_request"
    assert time.monotonic() - begun >= 0.9
    assert sent > 3 or how == "stops"
    assert quiet(gateway)


def test_body_that_breaks_its_framing_is_refused_at_once(house):
    """A chunk that is none, in a packet of its own, is 400 long before body_s."""
    client = connect(house.gateway)
    client.sendall(head("Transfer-Encoding: chunked", key=house.key) + b"1\r\n{\r\n")
    time.sleep(0.1)
    begun = time.monotonic()
    client.sendall(b"zz\r\n")

    answer = rest(client)

    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.") == 1
    assert "framing" in said(answer)["message"]
    assert time.monotonic() - begun < 10  # body_s is 30


def test_resets_at_any_point_leave_nothing_behind(house):
    """At seeded places of head, body and stream: nothing stays in flight, held or open, and no bug is met."""
    rng, gateway = random.Random(11), house.gateway
    until(lambda: house.active.stats()["open_streams"] == 0)
    whole = post(chat(order(tokens=60, tokens_per_s=400)), key=house.key)
    refused = [post(chat(model="none"), key=house.key), post(b"{" * 300, key="no-key"), head("Content-Length: 99")]
    before = descriptors(gateway)
    for _ in range(150):
        request = rng.choice([whole, whole, whole, *refused])
        client = connect(gateway, 4096)
        client.sendall(request[: rng.randrange(len(request) + 1)] if rng.random() < 0.6 else request)
        if rng.random() < 0.6:
            client.settimeout(rng.random() * 0.05)
            with suppress(TimeoutError):
                client.recv(rng.randrange(1, 4000))
        rng.choice([reset, socket.socket.close])(client)

    until(lambda: quiet(gateway), 20)
    until(lambda: house.active.stats()["open_streams"] == 0)
    until(lambda: descriptors(gateway) <= before + 64)  # kept connections to servers
    until(lambda: noted(gateway, "leg.opened") <= noted(gateway, "request.settled"))  # which is written a moment later
    assert noted(gateway, "leg.opened")
    assert gateway.faults() == []


def noted(gateway, kind):
    """The requests of which the journal says so."""
    return {one["request_id"] for one in gateway.journal() if one["kind"] == kind}


# -------------------------------------------------------------------- heads and connections


def test_slow_heads_are_all_closed(start_gateway, house):
    """A hundred clients that send a byte now and then are gone after head_s, fresh or after an earlier request."""
    gateway = start_gateway([house.active.url], timeouts={"head_s": 1})
    begun = time.monotonic()
    clients = [connect(gateway) for _ in range(100)]
    for client in clients[:50]:
        client.sendall(HEALTH)
        until_has(client, b"}")
    request, open_ = head(), dict(enumerate(clients))
    answers: dict[int, bytes] = dict.fromkeys(open_, b"")
    for at in range(len(request) - 1):
        for number, client in list(open_.items()):
            try:
                client.sendall(request[at : at + 1])
                client.setblocking(False)
                answers[number] += client.recv(1 << 16)
            except BlockingIOError:
                pass
            except OSError:
                del open_[number]
                continue
            client.settimeout(5)
            if answers[number]:
                assert rest(client) == b""
                del open_[number]
        time.sleep(0.1)
        if not open_:
            break

    assert open_ == {}
    assert time.monotonic() - begun > 0.9
    assert sum(answer.startswith(b"HTTP/1.1 408") for answer in answers.values()) > 50  # others see a reset before it
    assert said(next(filter(None, answers.values())))["code"] == "invalid_request"
    assert gateway.get("/health")[0] == 200


def test_head_that_stops_is_closed(start_gateway, house):
    """One packet of a head and then nothing: head_s counts, although no second packet ever tells the time."""
    gateway = start_gateway([house.active.url], timeouts={"head_s": 1})
    fresh, used = connect(gateway), connect(gateway)
    used.sendall(HEALTH)
    until_has(used, b"}")
    time.sleep(0.1)
    for client in (fresh, used):
        client.sendall(head()[:40])

    for client in (fresh, used):
        assert said(rest(client))["message"].endswith("within 1 s.")


def test_idle_connections_are_closed(start_gateway, house):
    """After client_idle_s without a request, fresh or used before; one that goes on asking stays."""
    gateway = start_gateway([house.active.url], timeouts={"client_idle_s": 2})
    fresh, used, busy = (connect(gateway) for _ in range(3))
    used.sendall(HEALTH)
    until_has(used, b"}")
    for _ in range(10):
        busy.sendall(HEALTH)
        until_has(busy, b"}")
        time.sleep(0.3)

    assert rest(fresh) == rest(used) == b""
    assert not hung_up(busy)
    busy.close()


def test_clients_beyond_the_limit_are_told(start_gateway, house):
    """One too many is 503 at once, the others are served, and there is room again when one leaves."""
    gateway = start_gateway([house.active.url], limits={"client_connections": 8})
    until(lambda: gateway.get("/health")[0] == 200)
    inside = [connect(gateway) for _ in range(8)]
    for client in inside:
        client.sendall(HEALTH)
        until_has(client, b"}")

    outside = connect(gateway)
    outside.sendall(post(plain(order(tokens=2))))
    answer = rest(outside)
    inside[0].sendall(post(plain(order(tokens=2))))
    served = until_has(inside[0], b'"choices"')
    inside.pop().close()

    assert answer.startswith(b"HTTP/1.1 503")
    assert said(answer)["code"] == "overloaded"
    assert b"retry-after" in answer
    assert served.startswith(b"HTTP/1.1 200")
    until(lambda: gateway.get("/health")[0] == 200)
    assert "clients.turned_away" in gateway.log()


def test_flood_of_connections_is_turned_away(start_gateway, house):
    """A thousand silent clients beyond the limit are all hung up on, and those inside are served meanwhile."""
    gateway = start_gateway([house.active.url], limits={"client_connections": 4})
    inside = connect(gateway)
    inside.sendall(HEALTH)
    until_has(inside, b"}")
    flood = [connect(gateway) for _ in range(1000)]
    inside.sendall(HEALTH)
    served = until_has(inside, b"}")

    until(lambda: sum(map(hung_up, flood)) >= 996, 20)

    assert served.startswith(b"HTTP/1.1 200")
    until(lambda: descriptors(gateway) < 100)
    for client in flood:
        client.close()


def test_want_of_descriptors_neither_spins_nor_ends_streams(start_gateway):
    """Without a free descriptor the gateway sleeps, takes no server for dead, and goes on when there is one again."""
    with start_stub() as stub:
        timeouts = {"probe_every_s": 0.1, "idle_s": 0.1, "client_idle_s": 3600}
        gateway = start_gateway([stub.url], timeouts=timeouts)
        client = connect(gateway)
        client.sendall(post(chat(order(tokens=300, tokens_per_s=40))))
        until_has(client, b"data: ")
        pid = gateway.process.pid
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)

        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(gateway) - 1, limit[1]))
        crowd = [connect(gateway) for _ in range(20)]
        begun, used = time.monotonic(), cpu_s(gateway)
        answer = rest_of_stream(client)
        share = (cpu_s(gateway) - used) / (time.monotonic() - begun)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        for one in crowd:
            one.close()

        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert share < 0.5
        until(lambda: gateway.get("/readyz")[0] == 200)


def rest_of_stream(client: socket.socket) -> bytes:
    """Read a stream to its end, of which the connection is not the end."""
    got = b""
    client.settimeout(20)
    while not got.endswith(b"\r\n0\r\n\r\n"):
        piece = client.recv(1 << 16)
        assert piece, got[-300:]
        got += piece
    return got
