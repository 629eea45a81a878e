"""A server that answers small questions as vLLM does, or as it is told: for whoever looks at fleets."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class VllmLike:
    """key: that /v1 asks for. behind_s: by how much its clock is slow. slow_s: how long /health takes.

    host: where it listens. answers: status and JSON by path; what is not there is 404. asked: paths, in order.
    """

    def __init__(
        self, key: str | None = None, behind_s: float = 0.0, slow_s: float = 0.0, host: str = "127.0.0.1", **more: Any
    ) -> None:
        self.key, self.behind_s, self.slow_s = key, behind_s, slow_s
        self.answers: dict[str, tuple[int, Any]] = {
            "/health": (200, ""),
            "/version": (200, {"version": more.get("version", "0.32.0")}),
            "/v1/models": (200, {"data": [{"id": "m", "max_model_len": more.get("window", 4096)}]}),
            "/tokenize": (200, {"count": 2, "tokens": more.get("tokens", [1, 2])}),
            "/v1/completions/render": (200, [{"sampling_params": {"temperature": 0.6}}]),
        }
        self.asked: list[str] = []
        self._server = Server((host, 0), Asked)
        self._server.like = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    like: VllmLike


class Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        like = self.server.like
        self.rfile.read(int(self.headers.get("content-length", 0)))
        like.asked.append(self.path)
        status, said = like.answers.get(self.path, (404, {"detail": "Not Found"}))
        if like.key and self.path.startswith("/v1") and self.headers.get("authorization") != f"Bearer {like.key}":
            status, said = 401, {"error": "Unauthorized"}
        if self.path == "/health":
            time.sleep(like.slow_s)
        body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response_only(status)
        self.send_header("date", formatdate(time.time() - like.behind_s, usegmt=True))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass
