"""Planned moves on the admin port: of all that runs at a replica, or of one session. docs/admin.md has the routes."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, TypeVar
from urllib.parse import unquote

import msgspec
import structlog
from aiohttp import web

from gateway.http.asked import body, query
from gateway.moves import AT_ONCE, AT_ONCE_MAX, Moves
from gateway.session_moves import Refusal, SessionMoves
from guards.refusal import Reason, Refused

log = structlog.get_logger()
T = TypeVar("T")

Handler = Callable[[web.BaseRequest], Awaitable[object]]
Routes = Mapping[str, Handler]  # by method


class Undrain(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/replicas/{name}/undrain: nothing is to be said."""


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/replicas/{name}/drain. at_once: streams that may be on their way at a time."""

    at_once: Annotated[int, msgspec.Meta(ge=1, le=AT_ONCE_MAX)] = AT_ONCE


class Move(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/sessions/{name}/move. to: the replica. key_id, user: whose, where several have a session so named."""

    to: str
    key_id: str | None = None
    user: str | None = None


class AdminMoves:
    """Answers what is asked below /admin/replicas/ and /admin/sessions/."""

    def __init__(self, moves: Moves, sessions: SessionMoves) -> None:
        self._moves, self._sessions = moves, sessions

    def routes(self, room: str, rest: str) -> Routes | None:
        """The routes of a path, percent-encoded as it came; None where it is none of these."""
        name, _, act = rest.rpartition("/")
        name = unquote(name)
        if room == "sessions" and name and act == "move":
            return {"POST": lambda request: self._move(request, name)}
        if room != "replicas" or not name:
            return None
        if act == "undrain":
            return {"POST": lambda request: self._undrain(request, name)}
        if act == "drain":
            return {
                "GET": lambda request: self._told(request, name),
                "POST": lambda request: self._drain(request, name),
            }
        return None

    async def _drain(self, request: web.BaseRequest, name: str) -> object:
        said = await body(request, Drain)
        told = _of_replica(lambda: self._moves.drain(name, said.at_once))
        log.info("admin.drained", replica=name, at_once=said.at_once)
        return told

    async def _told(self, request: web.BaseRequest, name: str) -> object:
        query(request)
        return _of_replica(lambda: self._moves.told(name))

    async def _undrain(self, request: web.BaseRequest, name: str) -> object:
        await body(request, Undrain)
        drained = _of_replica(lambda: self._moves.undrain(name))
        log.info("admin.undrained", replica=name, new=drained)
        return {"replica": name, "undrained": drained}

    async def _move(self, request: web.BaseRequest, name: str) -> object:
        said = await body(request, Move)
        try:
            told = await self._sessions.move(name, said.to, said.key_id, said.user)
        except Refusal as refusal:
            reason = Reason.NOT_FOUND if refusal.status == 404 else Reason.INVALID
            raise Refused(reason, refusal.why, status=refusal.status) from None
        log.info("admin.moved", key_id=told["key_id"], to=said.to, moved=told["moved"])
        return told


def _of_replica(work: Callable[[], T]) -> T:
    try:
        return work()
    except KeyError:
        raise Refused(Reason.NOT_FOUND, "There is no replica of that name.") from None
