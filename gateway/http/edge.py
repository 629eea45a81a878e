"""The public port: OpenAI's routes, keys, limits, and errors in OpenAI's shape."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec
import structlog
from aiohttp import web
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from gateway.books.keys import Keys
from gateway.books.tenants import Tenant
from gateway.fleet.replicas import Fleet
from gateway.flow import Flow
from gateway.http.errors import error_event, error_response
from gateway.http.ids import new_id
from gateway.http.pings import Pings
from gateway.http.readiness import readiness
from gateway.http.sink import ClientSink
from gateway.legs import Headers
from gateway.stream.call import Bounds, Call, Endpoint
from guards.refusal import Reason, Refused
from guards.scope import lineage
from guards.sla import ASKED_HEADER, asked_s

log = structlog.get_logger()

SESSION_HEADER, AGENT_HEADER = "x-session-id", "x-agent-id"  # a client's own names, kept under its key
NAME = re.compile(r"[!-~]{1,128}")
TRACE_HEADERS = ("traceparent", "tracestate")
TRACE_VALUE = re.compile(r"[\x20-\x7e]{1,512}")
RETRY_WHEN_FULL_S = 1.0
LINGER_S = 1.0  # for a client to read why its body was refused

Handler = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]


class Edge:
    """Handles every request on the public port. Whatever happens, the client gets OpenAI's error shape.

    keepalive_s: of silence, after which a stream's client gets a comment.
    scrub: takes addresses out of servers' words.
    salt: what keeps one org from timing another's cached prefixes; None shares them.
    near: what a request has in common with others, so that it goes where they went.
    ready: says what keeps the gateway from serving, line by line.
    on_refused: told of every refusal, whoever refused.
    in_flight: requests whose answers are not made yet.
    """

    def __init__(
        self,
        flow: Flow,
        fleet: Fleet,
        keys: Keys,
        *,
        bounds: Bounds,
        body_bytes_max: int,
        body_s: float,
        client_buffer_bytes: int,
        keepalive_s: float,
        requests_max: int,
        budget_status: int,
        scrub: Callable[[str], str],
        salt: Callable[[Tenant], str | None],
        near: Callable[[Call, Tenant, str | None], int | None],
        ready: Callable[[], list[str]],
        on_refused: Callable[[Reason], None],
    ) -> None:
        self._flow, self._fleet, self._keys, self._bounds = flow, fleet, keys, bounds
        self._body_bytes_max, self._body_s = body_bytes_max, body_s
        self._client_buffer_bytes, self._pings = client_buffer_bytes, Pings(keepalive_s)
        self._requests_max, self._budget_status = requests_max, budget_status
        self._scrub, self._salt, self._near = scrub, salt, near
        self._ready, self._on_refused = ready, on_refused
        self.in_flight = 0
        self._stopping = False
        self._started_at = int(time.time())
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", Endpoint.CHAT): partial(self._generate, Endpoint.CHAT),
            ("POST", Endpoint.COMPLETIONS): partial(self._generate, Endpoint.COMPLETIONS),
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/readyz"): self._readyz,
        }
        self._paths = {path for _, path in self._routes}

    def stop(self) -> None:
        """Refuse new requests from now on, and let go of each connection with its next answer."""
        self._stopping = True

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        request_id = new_id()
        try:
            response = await self._route(request)(request, request_id)
        except Refused as refused:
            self._note(refused, request_id)
            response = error_response(refused, self._budget_status)
            if request.body_exists and not request.content.is_eof():
                await _part(request, response, request_id)
        if not response.prepared:
            response.headers.setdefault("x-request-id", request_id)
        if self._stopping:
            response.force_close()
        return response

    def _note(self, refused: Refused, request_id: str) -> None:
        """Count and log a refusal, and make its words fit for the client."""
        self._on_refused(refused.reason)
        detail = refused.detail
        if refused.reason is Reason.UPSTREAM:  # a server's words: they may quote the request, and tell of the house
            detail, refused.detail = "", self._scrub(refused.detail)
            refused.param = refused.param and self._scrub(refused.param)
        log.info("request.refused", request_id=request_id, reason=refused.reason, detail=detail)

    def _route(self, request: web.BaseRequest) -> Handler:
        handler = self._routes.get((request.method, request.path))
        if handler is not None:
            return handler
        if request.method == "GET" and request.path.startswith("/v1/models/"):
            return self._model
        if request.path in self._paths:
            raise Refused(Reason.NOT_FOUND, f"{request.method} is not a method of this path.", status=405)
        raise Refused(Reason.NOT_FOUND, "There is no such path here.")

    # ---------------------------------------------------------------- generation

    async def _generate(self, endpoint: Endpoint, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        if self._stopping:
            raise Refused(Reason.OVERLOADED, "This gateway is stopping.", retry_after_s=RETRY_WHEN_FULL_S)
        tenant, whole = self._tenant(request), request.content.is_eof()
        if self.in_flight >= self._requests_max:
            raise Refused(Reason.OVERLOADED, "Too many requests are in flight here.", retry_after_s=RETRY_WHEN_FULL_S)
        self.in_flight += 1
        try:
            # No name for the body: what is only needed to be parsed is not kept for as long as the answer takes.
            call = Call(endpoint, await self._body(request), request_id, self._bounds)
            received_at = self._flow.clock()  # the client's own time to send is not ours
            if not self._fleet.knows(call.model):
                raise self._no_model(call.model)
            if not whole:  # as it is now: a body may take its time
                tenant = self._tenant(request)
            if (salt := self._salt(tenant)) is not None:
                call.body["cache_salt"] = salt
            call.session, call.agent = _named(request.headers)
            call.near = self._near(call, tenant, salt)
            if (asked := request.headers.get(ASKED_HEADER)) is not None:
                call.asked_s = asked_s(asked)
            if call.session is not None or call.agent is not None or tenant.each:
                tenant = self._within(tenant, call)
            sink = ClientSink(request, request_id, received_at, self._client_buffer_bytes)
            if call.stream:
                self._pings.add(sink)
            try:
                plain = await self._flow.serve(call, tenant, sink, _trace(request, request_id))
            except Refused as refused:
                if not sink.started:
                    raise
                self._note(refused, request_id)  # its client was told already that it waits: no status can be sent now
                sink.write(error_event(refused))
                plain = None
            except Exception as error:
                if not sink.started:
                    raise
                log.error("stream.fault", request_id=request_id, exc_info=error)  # visibly: no status can be sent now
                sink.broken("Something broke in the gateway; it was logged.")
                plain = None
            finally:
                self._pings.forget(sink)
        finally:
            self.in_flight -= 1
        return sink.response() if plain is None else sink.plain(plain)

    def _within(self, tenant: Tenant, call: Call) -> Tenant:
        """Who pays for a request of the session and the agent that it names."""
        try:
            agents = () if call.agent is None else lineage(call.agent, self._bounds.agent_depth)
        except ValueError as error:
            raise Refused(Reason.INVALID, f"{AGENT_HEADER}: {error}.", param=AGENT_HEADER) from None
        return tenant.within(call.session, agents, self._bounds.agent_share)

    def _tenant(self, request: web.BaseRequest) -> Tenant:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        return self._keys.tenant(secret.strip() if scheme.lower() == "bearer" else None)

    async def _body(self, request: web.BaseRequest) -> bytes:
        content = request.content
        whole = content.is_eof()  # it came with its head, as most do
        if not whole or "expect" in request.headers:
            self._await_body(request)
        try:
            if whole:
                body = content.read_nowait()
            else:
                async with asyncio.timeout(self._body_s):
                    body = await _read(content, self._body_bytes_max)
        except TimeoutError:
            raise Refused(Reason.INVALID, f"The body did not arrive within {self._body_s:g} s.", status=408) from None
        except web.RequestPayloadError:
            raise Refused(Reason.INVALID, "The body could not be read: its framing or encoding is broken.") from None
        if len(body) > self._body_bytes_max:
            raise self._too_large()
        return body

    def _await_body(self, request: web.BaseRequest) -> None:
        """Let a client go on to send its body, or refuse one that says it is too large."""
        if (request.content_length or 0) > self._body_bytes_max:
            raise self._too_large()
        expecting = request.headers.get("expect", "").lower() == "100-continue" and request.version >= (1, 1)
        if expecting and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _too_large(self) -> Refused:
        return Refused(Reason.TOO_LARGE, f"The body may have at most {self._body_bytes_max} bytes.")

    # ---------------------------------------------------------------- models and health

    async def _models(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        self._tenant(request)
        return _json({"object": "list", "data": [self._card(model) for model in self._fleet.models]})

    async def _model(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        self._tenant(request)
        model = request.path.removeprefix("/v1/models/")
        if model not in self._fleet.models:
            raise self._no_model(model)
        return _json(self._card(model))

    def _card(self, model: str) -> dict[str, object]:
        window = self._fleet.window(model)
        card = {"id": model, "object": "model", "created": self._started_at, "owned_by": "holdfast"}
        return card | {"max_model_len": window}

    def _no_model(self, model: str) -> Refused:
        if not self._fleet.models:  # none was discovered yet: for clients a 404 would be final
            return Refused(Reason.NO_REPLICA, "No server has told its models yet.", retry_after_s=RETRY_WHEN_FULL_S)
        known = ", ".join(self._fleet.models[:20]) or "none yet"
        return Refused(Reason.MODEL_UNKNOWN, f"There is no model {model[:100]!r} here. Models: {known}.", param="model")

    async def _health(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        """The gateway itself lives; nothing upstream is asked."""
        return _json({"status": "ok"})

    async def _readyz(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        return readiness(self._ready())


def _json(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def _read(content: StreamReader, bytes_max: int) -> bytes:
    """Read a body that is still coming; little more than bytes_max of it."""
    parts: list[bytes] = []
    size = 0
    async for part in content.iter_any():
        parts.append(part)
        size += len(part)
        if size > bytes_max:
            break
    return b"".join(parts)


async def _part(request: web.BaseRequest, response: web.Response, request_id: str) -> None:
    """Answer a client whose body is still coming, and hang up.

    Closing at once would reset its connection before it has read the answer, and it would try again.
    """
    response.headers["x-request-id"] = request_id
    response.force_close()
    with suppress(TimeoutError, web.RequestPayloadError, ConnectionError):
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(LINGER_S):
            async for _ in request.content.iter_any():
                pass


def _named(headers: CIMultiDictProxy[str]) -> tuple[str | None, str | None]:
    """What a client calls its session and its agent."""
    session, agent = headers.get(SESSION_HEADER), headers.get(AGENT_HEADER)
    if session is not None or agent is not None:
        for header, name in ((SESSION_HEADER, session), (AGENT_HEADER, agent)):
            if name is not None and not NAME.fullmatch(name):
                raise Refused(Reason.INVALID, f"{header} must be 1 to 128 visible ASCII characters.", param=header)
    return session, agent


def _trace(request: web.BaseRequest, request_id: str) -> Headers:
    """The only headers that go upstream: an id of ours, and W3C trace context where it is well-formed."""
    headers: Headers = (("x-request-id", request_id),)
    for name in TRACE_HEADERS:
        value = request.headers.get(name)
        if value is not None and TRACE_VALUE.fullmatch(value):
            headers += ((name, value),)
    return headers
