"""aiohttp's server connection, bounded, and with the hooks that a push-style gateway needs.

aiohttp parses (llhttp, strict), words answers and times idle connections. Ours are the loop over a connection's
requests, a bound for every wait and size that a client could otherwise choose, errors that arise before any handler
runs in the shape that OpenAI's clients expect, and a call when a slow client can take more.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler

from gateway.http.errors import error_bytes, error_response
from gateway.http.ids import new_id
from gateway.http.stall import Stall
from gateway.http.turn import Turn
from guards.refusal import Reason, Refused

log = structlog.get_logger()

HEADERS_MAX = 128  # of one request
TURNED_AWAY_MAX = 256  # clients beyond the limit that are told why, at once; further ones are just hung up on
TURNED_AWAY_S = 1.0  # for such a client to ask, and to read that it is refused
RETRY_WHEN_FULL_S = 1.0
SAY_EVERY_S = 10.0  # a log line, however many there are


@dataclass(frozen=True)
class ClientLimits:
    """What clients may take. Times in seconds, sizes in bytes.

    head_bytes, head_s: for the whole head of a request, from its first byte.
    idle_s: between requests, and before the first.
    stall_s: for a client that reads nothing of what waits for it.
    connections: at once, on one port.
    """

    head_bytes: int = 16_384
    head_s: float = 10.0
    idle_s: float = 75.0
    stall_s: float = 30.0
    connections: int = 8192


class Written(web.StreamResponse):
    """An answer that was written already: only what becomes of the connection is left to decide."""

    prepared = True

    def __init__(self, keep_alive: bool) -> None:  # the rest of an answer is never asked for
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to prepare: a second head would pass for another answer."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class ClientConnection(RequestHandler):
    """One client connection. A client that closes its sending side has hung up, whatever it would still read."""

    __slots__ = ("_body", "_head_bytes", "_head_timer", "_limits", "_small", "_stall", "full", "on_room", "turn")

    def __init__(
        self, manager: "Listener", limits: ClientLimits, *, loop: asyncio.AbstractEventLoop, **options: Any
    ) -> None:
        super().__init__(manager, loop=loop, **options)
        self.on_room: Callable[[], None] | None = None
        self.full = False  # its client has to read first
        self.turn = manager.turn
        self._limits = limits
        self._body: StreamReader = EMPTY_PAYLOAD  # of the latest request
        self._head_bytes = 0  # of a head that is not whole yet
        self._small = False  # the latest head, beyond doubt: all that was read of its request is
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall: Stall | None = None

    # ---------------------------------------------------------------- what the client sends

    def data_received(self, data: bytes) -> None:
        """Take in bytes of requests. Four cases:

        1. Behind a request that is being answered: dropped, and the connection ends with that answer. Who pipelines
           must be able to ask again (RFC 9112, 9.3.2); nobody can make us hold what we do not answer yet.
        2. A head that is not whole: its time runs from its first byte, its size is bounded.
        3. A request. Its body, if it is not whole, is bounded by the edge.
        4. What cannot be parsed. aiohttp answers it, but in mid-body the handler must hear of it too.
        """
        asking = self._current_request
        if asking is not None and asking.content.is_eof() and data.strip(b"\r\n"):
            self.close()
            return
        body = self._body
        idle = self._waiter is not None and not self._waiter.done() and not self._upgraded
        super().data_received(data)
        waits = self._waiter is not None and not self._waiter.done()
        if waits or not self._request_count:  # a new connection's bytes may come before aiohttp waits for them
            self._head_goes_on(len(data))
            return
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._messages:
            # Only who was waited for was counted from the first byte; whoever else comes is measured.
            self._small = idle and self._head_bytes + len(data) <= self._limits.head_bytes
            self._body = self._messages[-1][1]
            if not self.writing_paused:
                self._unwatch_reading()  # who asks again has read all
        if self._body is not body and not body.is_eof():
            body.set_exception(web.RequestPayloadError("its framing is broken"))
        self._head_bytes = 0
        if len(self._messages) > 1:
            self.close()

    def _head_goes_on(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > self._limits.head_bytes:
            self._refuse(_head_too_large(self._limits.head_bytes))
        elif self._head_timer is None and more_bytes:
            self._head_timer = self._loop.call_later(self._limits.head_s, self._head_late)

    def _head_late(self) -> None:
        detail = f"The head of the request did not arrive within {self._limits.head_s:g} s."
        self._refuse(Refused(Reason.INVALID, detail, status=408))

    def _refuse(self, refused: Refused) -> None:
        """Refuse what is no request yet, and hang up."""
        if self.transport is not None:
            request_id = new_id()
            log.info("request.malformed", request_id=request_id, error=refused.detail)
            self.turn.end()
            self.transport.write(error_bytes(refused, request_id))
        self.force_close()

    # ---------------------------------------------------------------- answers

    async def start(self) -> None:
        """Answer one request after the other.

        Less than aiohttp's own does: no task for each request (so no context variables of its own), no lingering, no
        second request that waits, and what is left of a body is not fenced off, since the connection ends then.
        """
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            else:
                self.turn.end()  # a request that came behind the last bytes of a body: its answer is not to overtake
            if not await self._next() or not self._keepalive or self._close or self._force_close:
                break
            self._next_keepalive_close_time = self._loop.time() + self._limits.idle_s
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        if not self._force_close:
            self._task_handler = None
            self.turn.end()
            if self.transport is not None:
                self.transport.close()

    async def _next(self) -> bool:
        """Answer the next request; False where the client has gone meanwhile."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        handle = self._request_handler
        if not isinstance(message, RawRequestMessage):
            handle, message = self._make_error_handler(message), ERROR
        elif not self._small or message.version < (1, 0):
            handle = self._measured
        task = self._task_handler
        assert handle is not None
        assert task is not None
        request = web.BaseRequest(message, payload, self, StreamWriter(self, self._loop), task, self._loop)
        self._current_request, self._request_in_progress, gone = request, True, False
        try:
            try:
                response = await handle(request)
            except Exception as fault:
                response = self.handle_error(request, 500, fault)
            finally:
                self._current_request = None
            if not isinstance(response, Written) or self._upgraded:
                response, gone = await self.finish_response(request, response, None)
        except ConnectionError:
            return False
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as fault:  # in writing an answer, for a handler's own was answered
            log.error("connection.fault", error=repr(fault), exc_info=fault)
            self.force_close()
            return False
        finally:
            request._task = None  # type: ignore[assignment]  # lest they hold each other
            self._request_in_progress = False
            if self._handler_waiter is not None:  # a shutdown waits for it
                self._handler_waiter.set_result(None)
        self._keepalive = bool(response.keep_alive)
        if not payload.is_eof():
            self.close()
        return not gone

    async def _measured(self, request: web.BaseRequest) -> web.StreamResponse:
        """Refuse heads that came whole and are still too large, and versions that have no heads."""
        head_bytes = len(request.raw_path) + sum(map(len, chain.from_iterable(request.raw_headers)))
        if head_bytes > self._limits.head_bytes:
            return self.handle_error(request, 400, LineTooLong(b"", self._limits.head_bytes))
        if request.version < (1, 0) or self._request_handler is None:
            return self.handle_error(request, 400)
        return await self._request_handler(request)

    # ---------------------------------------------------------------- what it reads

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on after a pause; aiohttp asks for that with each body, paused or not.

        Where the body is whole and nothing is paused, it would parse nothing. A body that is not may wait in the
        parser, which stays paused from the one before.
        """
        if self._reading_paused or not self._body.is_eof():
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to: from now on it must show that it reads at all."""
        super().pause_writing()
        self.full = True
        self._watch_reading()

    def resume_writing(self) -> None:
        """The client has read enough that more may be written."""
        super().resume_writing()
        self.full = False
        self._unwatch_reading()
        then, self.on_room = self.on_room, None
        if then is not None:
            then()

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, time: float | None) -> None:
        """An answer of aiohttp's wording was written. (We write no access log.)"""
        self.written()

    def written(self) -> None:
        """An answer was written, all of it; the client may have some of it to read."""
        if self.transport is not None and self.transport.get_write_buffer_size():
            self._watch_reading()

    def _watch_reading(self) -> None:
        self._unwatch_reading()
        if self.transport is not None:
            self._stall = Stall(self.transport, self._limits.stall_s)

    def _unwatch_reading(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # ---------------------------------------------------------------- ends and errors

    def force_close(self) -> None:
        """Close the connection, whatever goes on. What waits for the end of the turn still goes out."""
        self.turn.end()
        super().force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone; its handler is cancelled by aiohttp."""
        self.on_room = None
        self._body = EMPTY_PAYLOAD  # a body knows its connection: together they would wait for the collector
        self._unwatch_reading()
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Word what aiohttp met: a request it could not parse (400), or a bug of ours (500). No header is logged."""
        request_id = new_id()
        if status >= 500:
            log.error("request.fault", request_id=request_id, path=request.path, error=repr(exc), exc_info=exc)
            refused = Refused(Reason.FAULT, "Something broke in the gateway; it was logged.")
        else:
            log.info("request.malformed", request_id=request_id, error=type(exc).__name__)
            refused = _unreadable(exc, self._limits.head_bytes)
        response = error_response(refused)
        response.headers["x-request-id"] = request_id
        response.force_close()
        return response


class Listener(web.Server):
    """Makes a `ClientConnection` of every connection. Handlers are cancelled when their client hangs up."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], limits: ClientLimits
    ) -> None:
        self._limits = limits
        super().__init__(
            handler,
            handler_cancellation=True,
            keepalive_timeout=limits.idle_s,
            lingering_time=0,
            access_log=None,
            max_headers=HEADERS_MAX,
            max_line_size=limits.head_bytes,
            max_field_size=limits.head_bytes,
        )
        self.turn = Turn(self._loop)
        self.turned_away = 0  # that are still being told
        self._said_at = -math.inf

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # a protocol factory, which is all it is used as
        if len(self._connections) >= self._limits.connections:
            self._say_full()
            return TurnedAway(self)
        return ClientConnection(self, self._limits, loop=self._loop, **self._kwargs)

    def _say_full(self) -> None:
        """Log that clients are turned away, now and then."""
        now = self._loop.time()
        if now - self._said_at > SAY_EVERY_S:
            self._said_at = now
            log.warning("clients.turned_away", connections=self._limits.connections)


class TurnedAway(asyncio.Protocol):
    """A client beyond the limit: refused once it has asked, so that it reads why; or hung up on."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one in all but its bases
        self._listener.turned_away += 1
        if self._listener.turned_away > TURNED_AWAY_MAX:
            self._transport.abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(TURNED_AWAY_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Its first bytes are answered, whatever they are; what follows is read only so that it can read."""
        if not self._answered and not self._transport.is_closing():
            self._answered = True
            refused = Refused(
                Reason.OVERLOADED, "Too many clients are connected here.", retry_after_s=RETRY_WHEN_FULL_S
            )
            self._transport.write(error_bytes(refused, new_id()))
            self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.turned_away -= 1
        if self._timer is not None:
            self._timer.cancel()


def _unreadable(error: BaseException | None, head_bytes: int) -> Refused:
    """Say why a request could not be parsed; never what was in it."""
    if isinstance(error, LineTooLong):
        return _head_too_large(head_bytes)
    return Refused(
        Reason.INVALID, f"This is no HTTP/1.1 request that can be read, or it has over {HEADERS_MAX} headers."
    )


def _head_too_large(head_bytes: int) -> Refused:
    return Refused(Reason.INVALID, f"The head of the request is larger than {head_bytes} bytes.")
