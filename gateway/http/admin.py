"""The admin port: metrics and readiness, to the very end.

Loopback unless configured otherwise, and then the metrics are behind a key.
"""

import hmac
from collections.abc import Callable
from hashlib import sha256

from aiohttp import web

from gateway.http.errors import error_response
from gateway.http.readiness import readiness
from gateway.watch.metrics import Metrics
from guards.refusal import Reason, Refused


class Admin:
    """Handles every request on the admin port.

    ready: says what keeps the gateway from serving, line by line; asked without a key, as on the public port.
    key_sha256: hex digest of the admin key; None where the port is on loopback and needs none.
    """

    def __init__(self, metrics: Metrics, ready: Callable[[], list[str]], key_sha256: str | None) -> None:
        self._metrics, self._ready, self._key_sha256 = metrics, ready, key_sha256

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        try:
            if request.path == "/readyz" and request.method == "GET":
                return readiness(self._ready())
            self._authorize(request)
            if request.path == "/metrics" and request.method == "GET":
                content_type = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
                return web.Response(body=self._metrics.exposition(), headers=content_type)
            raise Refused(Reason.NOT_FOUND, "There is no such path on the admin port.")
        except Refused as refused:
            return error_response(refused)

    def _authorize(self, request: web.BaseRequest) -> None:
        if self._key_sha256 is None:
            return
        said = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
        if not hmac.compare_digest(digest, self._key_sha256):
            raise Refused(Reason.UNAUTHORIZED, "The admin port needs the admin key as a bearer token.")
