"""Bytes that are no request: refused in OpenAI's shape, under an id, with nothing of them in the log."""

import json
import random
import re
import time

import pytest

from tests.scenarios.asking import order, plain
from tests.scenarios.sockets import connect, head, post, rest, until_has

SECRET = "Authorization: Bearer hf-this-is-a-secret-that-nobody-may-read"
GET = f"GET /health HTTP/1.1\r\nHost: x\r\n{SECRET}\r\n".encode()
CHUNKED = head("Transfer-Encoding: chunked", SECRET)
UNREADABLE: dict[str, bytes] = {
    "bare line feeds": GET.replace(b"\r\n", b"\n") + b"\n",
    "one bare line feed": GET[:-2] + b"\n\r\n",
    "a line feed in a value": GET + b"A: b\nc: d\r\n\r\n",
    "a carriage return in a value": GET + b"A: b\rc\r\n\r\n",
    "NUL in a value": GET + b"A: b\0c\r\n\r\n",
    "NUL in a name": GET + b"A\0: b\r\n\r\n",
    "a folded line": GET + b"A: b\r\n c\r\n\r\n",
    "a blank before the colon": GET + b"A : b\r\n\r\n",
    "no host": f"GET /health HTTP/1.1\r\n{SECRET}\r\n\r\n".encode(),
    "two hosts": GET + b"Host: y\r\n\r\n",
    "bytes beyond ASCII in the path": GET.replace(b"health", b"\xff\xfe") + b"\r\n",
    "a head too large": GET + b"".join(b"H%d: %b\r\n" % (n, b"x" * 1000) for n in range(40)) + b"\r\n",
    "a line too long": GET.replace(b"health", b"h" * 20_000) + b"\r\n",
    "a header too long": GET + b"A: " + b"b" * 20_000 + b"\r\n\r\n",
    "too many headers": GET + b"A: b\r\n" * 200 + b"\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/3.0": GET.replace(b"1.1", b"3.0") + b"\r\n",
    "HTTP/2 by its preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "a TLS hello": bytes.fromhex("16030100fa010000f60303") + b"\7" * 200,
    "SOCKS": b"\5\1\0",
    "a proxy's greeting": b"PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n" + GET + b"\r\n",
    "an unknown method": GET.replace(b"GET", b"BREW") + b"\r\n",
    "a method in lower case": GET.replace(b"GET", b"get") + b"\r\n",
    "a length below zero": head("Content-Length: -1", SECRET) + b"{",
    "a length with a sign": head("Content-Length: +5", SECRET) + b"hello",
    "a length in hex": head("Content-Length: 0x5", SECRET) + b"hello",
    "a length beyond numbers": head("Content-Length: 1" + "0" * 30, SECRET) + b"{",
    "two lengths": head("Content-Length: 5", "Content-Length: 6", SECRET) + b"hello!",
    "one length twice": head("Content-Length: 5", "Content-Length: 5", SECRET) + b"hello",
    "lengths in a list": head("Content-Length: 5, 5", SECRET) + b"hello",
    "length, then chunks": head("Content-Length: 4", "Transfer-Encoding: chunked", SECRET) + b"0\r\n\r\n",
    "chunks, then length": head("Transfer-Encoding: chunked", "Content-Length: 4", SECRET) + b"0\r\n\r\n",
    "chunks that are not last": head("Transfer-Encoding: chunked, gzip", SECRET) + b"0\r\n\r\n",
    "nearly chunked": head("Transfer-Encoding: xchunked", SECRET) + b"0\r\n\r\n",
    "chunked twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", SECRET) + b"0\r\n\r\n",
    "a chunk beyond numbers": CHUNKED + b"f" * 40 + b"\r\n{",
    "a chunk that is none": CHUNKED + b"zz\r\n{",
    "a chunk below zero": CHUNKED + b"-1\r\n{",
    "a chunk longer than it says": CHUNKED + b"1\r\n{}}\r\n",
    "chunks by bare line feeds": CHUNKED + b"1\n{\n0\n\n",
    "trailers without end": CHUNKED + b"0\r\n" + b"A: b\r\n" * 300,
    "a trailer too long": CHUNKED + b"0\r\nA: " + b"b" * 50_000,
}  # fmt: skip


def refusal(answer: bytes) -> tuple[int, dict[str, str]]:
    """The status and the error of one whole answer, which names its request."""
    top, _, body = answer.partition(b"\r\n\r\n")
    assert len(re.findall(rb"HTTP/\d\.\d \d{3} ", answer)) == 1
    assert b"x-request-id: req-" in top.lower()
    assert b"content-type: application/json" in top.lower()
    error: dict[str, str] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(top.split()[1]), error


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_400(house, name):
    """It gets one answer in OpenAI's shape, the connection ends, and no server hears of it."""
    before = house.active.stats()["requests"]
    client = connect(house.gateway)
    client.sendall(UNREADABLE[name])

    status, error = refusal(rest(client))

    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_request")
    assert house.active.stats()["requests"] == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_be_read_is_refused_however_it_is_cut(house, seed):
    """In two packets, cut anywhere, each gets one refusal; never an answer, never more than one."""
    rng = random.Random(seed)
    for name, data in UNREADABLE.items():
        cut = rng.randrange(1, len(data))
        client = connect(house.gateway)
        client.sendall(data[:cut])
        time.sleep(0.003)
        try:
            client.sendall(data[cut:])
            answer = rest(client)
        except (BrokenPipeError, ConnectionResetError):  # it was refused by its first half
            continue
        if answer:
            assert (name, refusal(answer)[0] in (400, 401)) == (name, True)


def test_nothing_of_it_is_in_the_log(house):
    """Refusals are logged, without a traceback, a header or a key."""
    client = connect(house.gateway)
    client.sendall(UNREADABLE["bare line feeds"])
    rest(client)

    assert "request.malformed" in house.gateway.log()
    assert "this-is-a-secret" not in house.gateway.log()
    assert house.gateway.faults() == []


def test_head_without_an_end_is_refused_when_it_is_too_large(house):
    """Not only when its time is over: what comes is counted as it comes."""
    client = connect(house.gateway)
    begun = time.monotonic()
    client.sendall(GET + b"".join(b"H%d: %b\r\n" % (n, b"x" * 1000) for n in range(40)))

    status, error = refusal(rest(client))

    assert (status, "larger than 16384" in error["message"]) == (400, True)
    assert time.monotonic() - begun < 8  # head_s is 10


@pytest.mark.parametrize("more", [[], ["Expect: 100-continue"]], ids=["", "expecting"])
def test_terabyte_is_refused_before_it_comes(house, more):
    """A Content-Length of 10^12 is 413 at once, and a client that waits for 100 Continue is not told to go on."""
    client = connect(house.gateway)
    begun = time.monotonic()
    client.sendall(head("Content-Length: 1000000000000", *more, key=house.key))

    answer = until_has(client, b"}}")

    assert refusal(answer)[0] == 413
    assert time.monotonic() - begun < 5  # body_s is 30
    client.close()


def test_get_with_a_body_is_answered_and_its_connection_ends_unless_the_body_is_whole(house):
    """A body that nobody reads is not waited for."""
    whole, half = connect(house.gateway), connect(house.gateway)
    for client, body in ((whole, b"hello"), (half, b"he")):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n" + body)
        assert b" 200 OK" in until_has(client, b"}")

    assert rest(half) == b""
    whole.sendall(post(plain(order(tokens=2)), key=house.key))
    assert b" 200 OK" in until_has(whole, b'"choices"')


@pytest.mark.parametrize("method", ["CONNECT evil:443", "OPTIONS *", "GET //[", "TRACE /health", "GET http://evil/x"])
def test_requests_for_others_are_404_or_405(house, method):
    """What is HTTP, yet not for us, is refused, and leads nowhere."""
    client = connect(house.gateway)
    client.sendall(f"{method} HTTP/1.1\r\nHost: evil:443\r\nConnection: close\r\n{SECRET}\r\n\r\n".encode())

    assert refusal(rest(client))[0] in (404, 405)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_upgrades_are_ignored(house, upgrade):
    """The request is answered as if nothing had been said of another protocol."""
    client = connect(house.gateway)
    client.sendall(
        f"GET /health HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: {upgrade}\r\n\r\n".encode()
    )

    assert b" 200 OK" in until_has(client, b"}")
    client.close()
