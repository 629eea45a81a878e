"""What a server says of a request reaches the client without what it says of the house."""

import asyncio
import json
import re
from contextlib import suppress

import pytest

from tests.scenarios.asking import ask, chat, error, plain

HOUSE = "10.7.7.7:8000, http://gpu-77.svc:8000/v1, [fd00::7]:8000, node-7.lan and /usr/lib/python3/vllm/engine.py"
SAID = f"max_tokens must be at least 1, got 0. Said by {HOUSE}."
LEFT = "max_tokens must be at least 1, got 0. Said by [address], [address], [address], [address] and [file]."
CARDS = b'{"object":"list","data":[{"id":"stub","max_model_len":1000}]}'


def answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def told(code: int) -> bytes:
    return json.dumps({"error": {"message": SAID, "type": "BadRequestError", "param": HOUSE, "code": code}}).encode()


WAYS = {
    "a refusal": (answer("400 Bad Request", told(400)), 400, True),
    "an error event": (
        answer("200 OK", b"data: " + told(400) + b"\n\ndata: [DONE]\n\n", "text/event-stream"),
        400,
        True,
    ),
    "no JSON": (answer("400 Bad Request", f"<h1>nginx at {HOUSE}</h1>".encode(), "text/html"), 400, False),
    "a failure": (answer("500 Oops", told(500)), 503, False),
    "an error event of its own": (answer("200 OK", b"data: " + told(500) + b"\n\n", "text/event-stream"), 503, False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [chat, plain])
async def test_addresses_stay_here(start_gateway, make, way):
    """As a refusal, in a stream's event, in a failure: no address, host, URL or file, and the reason to the letter."""
    said, status, quoted = WAYS[way]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head.lower())
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(said if length else answer("200 OK", CARDS))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    gateway = await asyncio.to_thread(start_gateway, [url])

    seen = await ask(gateway, None, make())

    if way.startswith("an error event") and make is plain:  # not the answer that was asked for
        status, quoted = 502, False
    wire = seen.head + bytes(seen.body)
    assert not [part for part in (b"10.7", b"gpu-77", b"fd00", b"node-7", b"/usr", url[7:].encode()) if part in wire]
    assert seen.status in (status, 502)
    assert (error(seen)["message"] == LEFT) == quoted
    listener.close()
