"""Poison: a middleware of vLLM's API server that fails each request with a mark, as any server would fail a poison one.

A server has it only where whoever starts it names it (`--middleware`), and a request is marked only by who knows the
secret in the file that page_hand.SECRET_FILE names. The failure is simulated: vLLM's engine never sees the request.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from loadtests.gameday.page_hand import known

MIDDLEWARE = "loadtests.gameday.poison.Poison"
FIELD = "user"  # of a request: the only one that says who asks, which the gateway passes on as it is
PREFIX = "gameday-poison-"
BODY_BYTES_MAX = 1 << 20
MESSAGE = "EngineCore encountered an issue (a poison request of a game day)."

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def mark(secret: str) -> dict[str, str]:
    """What is added to a request's body, to poison it."""
    return {FIELD: PREFIX + secret}


def marked(body: bytes) -> bool:
    """Whether a request is marked, by who knows the secret."""
    if PREFIX.encode() not in body:
        return False
    try:
        said = json.loads(body).get(FIELD)
    except (ValueError, AttributeError):
        return False
    return isinstance(said, str) and said.startswith(PREFIX) and known(said.removeprefix(PREFIX))


class Poison:
    """An ASGI application around vLLM's own."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 500 to what is marked, and pass on all else as it came."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        came: list[MutableMapping[str, Any]] = []
        body = b""
        while len(body) < BODY_BYTES_MAX and (not came or came[-1].get("more_body")):
            came.append(await receive())
            body += came[-1].get("body", b"")
        if marked(body):
            return await _failed(send)
        waiting = iter(came)

        async def again() -> MutableMapping[str, Any]:
            return next(waiting, None) or await receive()

        return await self._app(scope, again, send)


async def _failed(send: Send) -> None:
    error = {"message": MESSAGE, "type": "InternalServerError", "param": None, "code": 500}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
