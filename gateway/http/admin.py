"""The admin port: metrics and readiness, to the very end; and the books, to be read and changed.

Loopback unless configured otherwise, and then everything but readiness is behind a key.
"""

import hmac
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import urlsplit

from aiohttp import web

from gateway.config import is_loopback
from gateway.http.admin_books import AdminBooks
from gateway.http.errors import error_response
from gateway.http.readiness import readiness
from gateway.watch.metrics import Metrics
from guards.refusal import Reason, Refused

BOOKS = "/admin/"


class Admin:
    """Handles every request on the admin port.

    ready: says what keeps the gateway from serving, line by line; asked without a key, as on the public port.
    key_sha256: hex digest of the admin key; None where the port is on loopback and needs none.
    host: the address that it listens on.
    """

    def __init__(
        self, metrics: Metrics, ready: Callable[[], list[str]], key_sha256: str | None, host: str, books: AdminBooks
    ) -> None:
        self._metrics, self._ready, self._key_sha256, self._host, self._books = metrics, ready, key_sha256, host, books

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        try:
            if request.path == "/readyz" and request.method == "GET":
                return readiness(self._ready())
            self._authorize(request)
            if request.path == "/metrics" and request.method == "GET":
                content_type = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
                return web.Response(body=self._metrics.exposition(), headers=content_type)
            if request.rel_url.raw_path.startswith(BOOKS):
                self._refuse_browsers(request)
                return await self._books.handle(request, request.rel_url.raw_path.removeprefix(BOOKS))
            raise Refused(Reason.NOT_FOUND, "There is no such path on the admin port.")
        except Refused as refused:
            response = error_response(refused)
            if request.body_exists and not request.content.is_eof():
                response.force_close()  # what is still coming is not read
            return response

    def _authorize(self, request: web.BaseRequest) -> None:
        if self._key_sha256 is None:
            return
        said = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
        if not hmac.compare_digest(digest, self._key_sha256):
            raise Refused(Reason.UNAUTHORIZED, "The admin port needs the admin key as a bearer token.")

    def _refuse_browsers(self, request: web.BaseRequest) -> None:
        """A page that somebody on this machine looks at may send requests here, but not without saying whose it is.

        Two cases: it names itself (Origin); or its own name was made to resolve to this machine (DNS rebinding), and
        then that name is in Host.
        """
        if "origin" in request.headers:
            raise Refused(Reason.INVALID, "The admin port is not for browsers.", status=403)
        if self._key_sha256 is None:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            if not (is_loopback(self._host) and is_loopback(host)):
                raise Refused(
                    Reason.INVALID, "Without an admin key, this is for loopback: set admin_key_sha256.", status=403
                )
