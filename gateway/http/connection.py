"""aiohttp's server connection, with the two hooks that a push-style gateway needs.

One tells when a slow client can take more; the other words errors that arise before any handler runs
(an unparsable request) as OpenAI clients expect them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.http.errors import error_response
from guards.refusal import Reason, Refused

log = structlog.get_logger()


class ClientConnection(RequestHandler):
    """One client connection."""

    __slots__ = ("on_room",)

    def __init__(self, manager: "Listener", *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self.on_room: Callable[[], None] | None = None

    def resume_writing(self) -> None:
        """The client has read enough that more may be written."""
        super().resume_writing()
        then, self.on_room = self.on_room, None
        if then is not None:
            then()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone; its handler is cancelled by aiohttp."""
        self.on_room = None
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Word what aiohttp met: a request it could not parse (400), or a bug of ours (500). No header is logged."""
        if status >= 500:
            log.error("request.fault", path=request.path, error=repr(exc), exc_info=exc)
            refused = Refused(Reason.FAULT, "Something broke in the gateway; it was logged.")
        else:
            log.info("request.malformed", error=type(exc).__name__)
            refused = Refused(Reason.INVALID, "This is not an HTTP request that can be read, or its head is too large.")
        response = error_response(refused)
        response.force_close()
        return response


class Listener(web.Server):
    """Makes a `ClientConnection` of every connection. Handlers are cancelled when their client hangs up."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any) -> None:
        super().__init__(handler, handler_cancellation=True, **options)

    def __call__(self) -> RequestHandler:
        return ClientConnection(self, loop=self._loop, **self._kwargs)
