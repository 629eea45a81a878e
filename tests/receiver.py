"""A receiver of webhooks, which believes only what is signed.

async with Receiver(fails=2) as receiver:
    ... receiver.url, receiver.secret ...; receiver.heard
"""

import base64
import json
import os
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from standardwebhooks import Webhook


class Receiver:
    """Listens on loopback. heard: what was signed and taken, in order; ids: of every try.

    fails: so many tries are answered `status` first; location: of the redirect, if that is one.
    """

    def __init__(self, fails: int = 0, status: int = 503, location: str | None = None) -> None:
        self.secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
        self.fails, self.status, self.location = fails, status, location
        self.heard: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.taken: list[str] = []

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        said = Webhook(self.secret).verify(await request.read(), dict(request.headers))
        self.ids.append(request.headers["webhook-id"])
        if len(self.ids) <= self.fails:
            headers = {"location": self.location} if self.location is not None else {}
            return web.Response(status=self.status, headers=headers, text="no " * 100_000)
        self.taken.append(self.ids[-1])
        self.heard.append(json.loads(json.dumps(said)))
        return web.Response()

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
