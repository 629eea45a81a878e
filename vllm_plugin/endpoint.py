"""Entry point of `vllm.endpoint_plugins`: two routes on vLLM's API server.

    GET  /holdfast/status   what was done, and in what state the plugin is: status.py
    POST /holdfast/scrub    look at all pages now: {"checked": 96, "corrupt": 0, "seconds": 0.02, "whole": true}

vLLM loads it when it is named: VLLM_PLUGINS=holdfast. Whoever may ask vLLM's API may ask these: with a key where it was
given --api-key or VLLM_API_KEY, and not without. (vLLM's own check looks at some paths only, and not at these.)

Nothing here imports numba, nor vLLM before a question comes.
"""

import asyncio
import hashlib
import hmac
import os
import time
import uuid
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from vllm_plugin import logs
from vllm_plugin.status import Answer, status

ANSWER_S_MAX = 10.0  # that engines may take to answer: they do so between two steps
SCRUB_S_MAX = 60.0  # that a scrub may take; then it says that it is not whole
SLICE_S = 0.01  # of it, between two steps of an engine: requests wait no longer for it at a time
RETRY_S = 1

log = logs.logger("endpoint")


class Refused(Exception):
    """An answer that is an error, in the form of OpenAI's. code: for machines."""

    def __init__(self, status: int, type_: str, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.type, self.code = status, type_, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        """As it is sent."""
        error = {"message": str(self), "type": self.type, "param": None, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


class Keys:
    """The API keys that vLLM was started with. None at all: everybody may ask."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def of(cls, args: Namespace) -> "Keys":
        """As vLLM finds them: those of --api-key, or else VLLM_API_KEY; empty ones are none."""
        said = args.api_key or [os.environ.get("VLLM_API_KEY")]
        return cls([key for key in said if key])

    def admit(self, authorization: str) -> bool:
        """Whether the header holds one of them. Takes as long whichever it is, and however much of it is right."""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return not self._digests or (scheme.lower() == "bearer" and any(matches))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Engines:
    """The engines behind an API server. ask: (method, arguments) -> what each of them answers.

    sampling: the defaults of that server's sampling; None where they are not known. continues: told what each half of
    each engine said, answers whether requests are continued, as the status has it.
    """

    def __init__(
        self,
        ask: Callable[..., Awaitable[list[Any]]],
        clock: Callable[[], float] = time.monotonic,
        sampling: Mapping[str, float] | None = None,
        continues: Callable[[list[Any]], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._ask, self._clock, self._sampling, self._continues = ask, clock, sampling, continues
        self._asked: dict[str, tuple[tuple[Any, ...], asyncio.Future[list[Any]]]] = {}
        self._scrubs = False

    async def status(self) -> dict[str, Any]:
        """Raises Refused."""
        answers = [Answer(**answer) for answer in await self._answers("holdfast_status")]
        told = status(_version(), answers, self._sampling)
        if self._continues is not None:
            told |= await self._continues([half for answer in answers for half in (answer.scheduler, *answer.workers)])
        return told

    async def scrub(self) -> dict[str, Any]:
        """Of all engines at once, each between its steps. whole: whether all pages that were there when it began, and
        are there still, were looked at since, by this or otherwise. Raises Refused.
        """
        if self._scrubs:
            why = "A scrub is running already. Ask again when it is over."
            raise Refused(409, "conflict_error", "scrub_running", why, retry_after=str(RETRY_S))
        self._scrubs = True
        try:
            return await self._scrub(uuid.uuid4().hex, self._clock())
        finally:
            self._scrubs = False

    async def _scrub(self, name: str, started_s: float) -> dict[str, Any]:
        checked = corrupt = 0
        left = True
        while left and self._clock() - started_s < SCRUB_S_MAX:
            engines = await self._answers("holdfast_scrub", name, SLICE_S)
            parts = [part for workers in engines for part in workers]
            checked += sum(part[0] for part in parts)
            corrupt += sum(part[1] for part in parts)
            left = any(part[2] for part in parts)
        seconds = self._clock() - started_s
        log.info("holdfast.scrubbed", checked=checked, corrupt=corrupt, seconds=round(seconds, 3), whole=not left)
        return {"checked": checked, "corrupt": corrupt, "seconds": seconds, "whole": not left}

    async def _answers(self, method: str, *args: Any) -> list[Any]:
        """One question of a kind at a time: whoever asks the same while it is open gets its answer.

        So a silent engine has two of them open, and not as many as came.
        """
        silent = f"The engine did not answer within {ANSWER_S_MAX:g} s: it is busy with a long step, or hangs."
        asked = self._open(method, args)
        if asked is None:
            raise Refused(503, "service_unavailable", "engine_silent", silent, retry_after=str(RETRY_S))
        try:
            return await asyncio.wait_for(asyncio.shield(asked), ANSWER_S_MAX)
        except TimeoutError:
            raise Refused(503, "service_unavailable", "engine_silent", silent, retry_after=str(RETRY_S)) from None
        except Exception as error:
            log.warning("holdfast.engine_failed", method=method, error=type(error).__name__)
            why = "The engine could not answer: it is dead, or it failed to. Its log says more."
            raise Refused(503, "service_unavailable", "engine_failed", why, retry_after=str(RETRY_S)) from None

    def _open(self, method: str, args: tuple[Any, ...]) -> "asyncio.Future[list[Any]] | None":
        """The question, asked; None where another of its kind is still without an answer, and was given up."""
        said, asked = self._asked.get(method, (args, None))
        if asked is not None and not asked.done():
            return asked if said == args else None
        asked = asyncio.ensure_future(self._ask(method, *args))
        self._asked[method] = args, asked
        return asked


def _version() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:  # run from a checkout
        return ""


class HoldfastEndpoint:
    """What vLLM asks for: `EndpointPlugin`."""

    name = "holdfast"
    required_tasks = None  # whatever is served: pages are cached for all of it

    def __init__(self) -> None:
        self._engines: Engines | None = None
        self._keys: Keys | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Called once, before there is an engine."""
        self._keys = Keys.of(app.state.args)
        app.add_api_route("/holdfast/status", self._get_status, methods=["GET"])
        app.add_api_route("/holdfast/scrub", self._post_scrub, methods=["POST"])
        app.add_api_route("/holdfast/status", _refuse_method("GET"), methods=["POST", "PUT", "PATCH", "DELETE"])
        app.add_api_route("/holdfast/scrub", _refuse_method("POST"), methods=["GET", "PUT", "PATCH", "DELETE"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Called once, with an engine, or with None where there is none."""
        from vllm_plugin import compat, front
        from vllm_plugin.restore.continuing import Continuing

        front.check_sessions()
        if engine_client is not None and compat.has_connector(engine_client.vllm_config):
            self._engines = Engines(
                lambda method, *args: compat.ask(engine_client, method, *args),
                sampling=compat.sampling_defaults(engine_client.vllm_config),
                continues=Continuing.of(engine_client).answer,
            )

    async def _get_status(self, request: Request) -> JSONResponse:
        return await self._answer(request, lambda engines: engines.status())

    async def _post_scrub(self, request: Request) -> JSONResponse:
        return await self._answer(request, lambda engines: engines.scrub())

    async def _answer(self, request: Request, ask: Callable[[Engines], Awaitable[dict[str, Any]]]) -> JSONResponse:
        assert self._keys is not None
        try:
            if not self._keys.admit(request.headers.get("authorization", "")):
                why = "Give one of the server's keys: Authorization: Bearer KEY."
                raise Refused(401, "authentication_error", "invalid_api_key", why, www_authenticate="Bearer")
            if self._engines is None:
                why = "No pages are guarded here. Start vLLM with --kv-transfer-config and HoldfastConnector in it."
                raise Refused(404, "invalid_request_error", "connector_absent", why)
            return JSONResponse(await ask(self._engines))
        except Refused as refused:
            return refused.response()


def _refuse_method(allowed: str) -> Callable[[], Awaitable[JSONResponse]]:
    async def refuse() -> JSONResponse:
        why = f"This is {allowed} only."
        return Refused(405, "invalid_request_error", "method_not_allowed", why, allow=allowed).response()

    return refuse
