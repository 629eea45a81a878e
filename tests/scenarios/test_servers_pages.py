"""Whatever stands between the gateway and vLLM may answer with a page of its own. No client ever sees one."""

import gzip
import json
import socketserver
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from tests.processes import TRUSTING
from tests.processes import ForkedGateway as Gateway
from tests.scenarios.asking import ask, chat, error, header, order, plain

MARK = "PAGE-OF-A-PROXY"
HTML = f"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>{MARK} nginx</body></html>"
CARDS = b'{"object":"list","data":[{"id":"stub","max_model_len":100000}]}'
ANSWER_BYTES = 65_536
EVENTS = 4  # of a real answer, before a page comes in its stream


def answer(status: str, body: bytes | str, kind: str = "text/html", *more: str) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def told(message: object, code: int = 400) -> str:
    return json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}})


# Name: what comes, and the status that the client gets for it.
PAGES = {
    "502": (answer("502 Bad Gateway", HTML), 502),
    "503 with a time": (answer("503 Service Unavailable", HTML, "text/html", "retry-after: 7777"), 502),
    "504 without a word": (answer("504 Gateway Timeout", ""), 502),
    "500 in plain text": (answer("500 Oops", MARK, "text/plain"), 502),
    "500 as JSON": (answer("500 Oops", told(MARK, 500), "application/json"), 502),
    "403": (answer("403 Forbidden", HTML), 502),
    "404": (answer("404 Not Found", HTML), 502),
    "429": (answer("429 Too Many Requests", HTML), 502),
    "400": (answer("400 Bad Request", HTML), 400),
    "413": (answer("413 Request Entity Too Large", HTML), 413),
    "400 of another make": (answer("400 Bad Request", json.dumps({"error": MARK}), "application/json"), 400),
    "400 with a page for a reason": (answer("400 Bad Request", told(HTML), "application/json"), 400),
    "400 with bytes that are no text": (answer("400 Bad Request", b"\xff\xfe" + MARK.encode()), 400),
    "a redirect": (answer("302 Found", HTML, "text/html", "location: http://10.0.0.1/login"), 502),
    "200": (answer("200 OK", HTML), 502),
    "200 without a word": (answer("200 OK", "", "application/json"), 502),
    "200 that is said to be JSON": (answer("200 OK", HTML, "application/json"), 502),
    "200 of another make": (answer("200 OK", json.dumps({"detail": MARK}), "application/json"), 502),
    "200 that is said to be a stream": (answer("200 OK", HTML, "text/event-stream"), 502),
    "200 with a page in an event": (answer("200 OK", f"data: {HTML}\n\n", "text/event-stream"), 502),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 502),
    "squeezed": (answer("200 OK", gzip.compress(HTML.encode()), "text/html", "content-encoding: gzip"), 502),
    "a huge one": (answer("502 Bad Gateway", HTML + "x" * 4 * ANSWER_BYTES), 502),
    "a huge one for success": (answer("200 OK", HTML + "x" * 4 * ANSWER_BYTES), 502),
    "no HTTP": (HTML.encode(), 502),
}

# What comes in a stream after its first tokens.
LATER = {
    "a page": HTML.encode(),
    "a page as an event": f"data: {HTML}\n\n".encode(),
    "a page as an error": f"data: {told(HTML, 502)}\n\n".encode(),
    "a whole answer": answer("502 Bad Gateway", HTML),
    "an event of another make": f'data: {{"detail": "{MARK}"}}\n\n'.encode(),
    "nothing": b"",
}


class Proxy(socketserver.ThreadingTCPServer):
    """Says that all is well, and answers requests for tokens with `page`, then hangs up."""

    daemon_threads = allow_reuse_address = True
    page = b""
    asked = 0


class Asked(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        while line := self.rfile.readline():
            length = 0
            while (field := self.rfile.readline().strip().lower()) != b"":
                if field.startswith(b"content-length:"):
                    length = int(field.partition(b":")[2])
            self.rfile.read(length)
            if b"/v1/chat/completions" in line or b"/v1/completions" in line:
                self.server.asked += 1
                self.wfile.write(self.server.page)
                return
            self.wfile.write(answer("200 OK", CARDS if b"/models" in line else "", "application/json"))


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def gateway(proxy, tmp_path_factory) -> Iterator[Gateway]:
    url = f"http://127.0.0.1:{proxy.server_address[1]}"
    folder = tmp_path_factory.mktemp("behind-a-proxy")
    limits, retries = {"answer_bytes": ANSWER_BYTES}, {"percent": 100, "per_s": 1000}
    timeouts = {"probe_every_s": 60, "suspect_s": 5}
    with Gateway(folder, [url], limits=limits, retries=retries, timeouts=timeouts, health=TRUSTING) as gateway:
        yield gateway
        assert gateway.stop() == 0
        assert gateway.faults() == []


@pytest.fixture(scope="module")
def beginning(stubs) -> bytes:
    """How a real stream begins, head and some events."""
    body = json.dumps(chat(order(tokens=50))).encode()
    request = urllib.request.Request(f"{stubs[0].url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        events = response.read().split(b"\n\n")[:EVENTS]
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"\n\n".join([*events, b""])


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("make", [chat, plain])
async def test_a_page_instead_of_an_answer_is_an_error_of_ours(gateway, proxy, make, name):
    """In OpenAI's shape, with a status and a reason, and not a byte of the page."""
    proxy.page, status = PAGES[name]

    seen = await ask(gateway, None, make())

    assert seen.status == status
    assert header(seen, "content-type").startswith("application/json")
    assert MARK.encode() not in seen.head + bytes(seen.body)
    assert b"<" not in seen.body
    said = error(seen)
    assert said["code"] == ("upstream_error" if status == 502 else "invalid_request")
    assert said["message"].endswith(".")
    assert header(seen, "retry-after") is header(seen, "location") is None


@pytest.mark.parametrize("name", LATER)
async def test_a_page_in_a_stream_ends_it_as_a_loss(gateway, proxy, beginning, name):
    """What came before it stays, and is followed by an error of ours; not a byte of the page."""
    proxy.page = beginning + LATER[name]

    seen = await ask(gateway, None, chat(order(tokens=50)))

    assert (seen.status, seen.done) == (200, False)
    assert len(seen.ids) > 0
    assert error(seen)["code"] in ("upstream_lost", "uncontinuable")
    assert MARK.encode() not in seen.body
    assert b"<" not in seen.body


async def test_a_reason_is_told_no_longer_than_is_fit(gateway, proxy):
    """A server may go on and on about a request; its client is told how that begins."""
    long = "too long a reason " * 2_000
    proxy.page = answer("400 Bad Request", told(long), "application/json")

    seen = await ask(gateway, None, chat())

    assert seen.status == 400
    said = error(seen)["message"]
    assert long.startswith(said)
    assert 1_000 < len(said) < len(long) / 2
