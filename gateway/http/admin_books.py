"""The books on the admin port: budgets, holds, spend, keys and prices as JSON. docs/admin.md has the routes."""

import asyncio
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

import msgspec
import structlog
from aiohttp import web

from gateway.budget_table import added
from gateway.config import parse_limit, window_of
from gateway.desk import Desk, Unknown
from gateway.http.admin_moves import AdminMoves, Routes
from gateway.http.asked import body, query
from gateway.replica_table import warnings
from gateway.spend import BY
from guards.budget import Limit
from guards.money import Price
from guards.refusal import Reason, Refused
from guards.scope import parsed

log = structlog.get_logger()
Shown = list[dict[str, Any]]  # JSON
T = TypeVar("T")

THREADS = 2  # that read and write files
WAITING_MAX = 32  # for them; beyond, callers are told to come again
PAGE, PAGE_MAX = 100, 1000
LIMITS_MAX = 32  # of a scope, as in the configuration
SINCE = re.compile(r"([0-9]{1,6})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class SetLimits(msgspec.Struct, forbid_unknown_fields=True):
    """PUT /admin/budgets/{scope}: the stored limits of a scope, all of them."""

    limits: list[str] = []
    each: dict[Literal["session", "agent", "turn"], list[str]] = {}


class Reset(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/budgets/{scope}/reset."""

    kind: str
    id: str | None = None


class More(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/budgets/{scope}/top-up."""

    amount: str
    id: str


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/keys."""

    user: str
    org: str | None = None
    team: str | None = None
    limits: list[str] = []


class AdminBooks:
    """Answers what is asked below /admin/. Files are read and written by threads of its own.

    prices: of the models that have one. changed: told when keys or limits were, before that is answered.
    replicas: what is thought of each replica now. promises: what was promised, and kept.
    moves: of streams and sessions; None where these are not to be had.
    """

    def __init__(
        self,
        desk: Desk,
        prices: Mapping[str, Price],
        changed: Callable[[], None],
        replicas: Callable[[], Shown] = list,
        promises: Callable[[], Mapping[str, Any]] = dict,
        moves: AdminMoves | None = None,
    ) -> None:
        self._desk, self._priced, self._changed, self._fleet = desk, prices, changed, replicas
        self._promises, self._moves = promises, moves
        self._threads = ThreadPoolExecutor(THREADS, "holdfast-admin")
        self._places = threading.BoundedSemaphore(WAITING_MAX)

    def close(self) -> None:
        """Let go of the threads; what they are at ends soon."""
        self._desk.closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def handle(self, request: web.BaseRequest, path: str) -> web.Response:
        """Answer one request for a path below /admin/, percent-encoded as it came. Raises Refused."""
        routes = self._routes(path, request.method)
        handler = routes.get(request.method)
        if handler is None:
            detail = f"{request.method[:20]} is not a method of this path."
            raise Refused(Reason.NOT_FOUND, detail, status=405, headers={"allow": ", ".join(routes)})
        body = msgspec.json.encode(await handler(request))
        return web.Response(body=body, content_type="application/json", headers={"cache-control": "no-store"})

    def _routes(self, path: str, method: str) -> Routes:
        room, _, rest = path.partition("/")
        if not rest and room == "keys":
            return {"GET": self._keys, "POST": self._make_key}
        if not rest and room in ("budgets", "holds", "spend", "prices", "replicas", "sla"):
            return {"GET": getattr(self, f"_{room}")}
        if room == "keys":
            return {"DELETE": lambda request: self._revoke(request, unquote(rest))}
        if self._moves is not None and (routes := self._moves.routes(room, rest)) is not None:
            return routes
        if room != "budgets":
            raise Refused(Reason.NOT_FOUND, "There is no such path on the admin port.")
        # What acts on a scope is the last part of a POST; for all other methods everything is the scope's name.
        scope, _, act = rest.rpartition("/")
        if method == "POST" and scope and act in ("reset", "top-up"):
            at = _scope(scope)
            return {"POST": lambda request: (self._reset if act == "reset" else self._top_up)(request, at)}
        at = _scope(rest)
        return {
            "GET": lambda request: self._budget(request, at),
            "PUT": lambda request: self._set(request, at),
            "DELETE": lambda request: self._remove(request, at),
        }

    # ---------------------------------------------------------------- budgets

    async def _budgets(self, request: web.BaseRequest) -> object:
        said = query(request, "limit", "after")
        limit = _count(said)
        found, following = await self._aside(lambda: self._desk.budgets(said.get("after", ""), limit))
        return {"data": found, "next": following}

    async def _budget(self, request: web.BaseRequest, at: str) -> object:
        query(request)
        return await self._aside(lambda: self._desk.budget(at))

    async def _set(self, request: web.BaseRequest, at: str) -> object:
        query(request)
        said = await body(request, SetLimits)
        limits = _limits(said.limits, "limits")
        each: dict[str, list[Limit]] = {level: _limits(found, f"each.{level}") for level, found in said.each.items()}
        answer = await self._change(lambda: self._desk.set_limits(at, limits, each))
        log.info("admin.limits_set", scope=at)
        return answer

    async def _remove(self, request: web.BaseRequest, at: str) -> object:
        kind = query(request, "kind").get("kind")
        which = None if kind is None else _worded(lambda: window_of(kind), "kind")
        if not await self._change(lambda: self._desk.remove_limits(at, which)):
            detail = f"{at} has no such stored limit; what the configuration declares is removed there."
            raise Refused(Reason.NOT_FOUND, detail)
        log.info("admin.limits_removed", scope=at)
        return {"scope": at, "removed": True}

    async def _reset(self, request: web.BaseRequest, at: str) -> object:
        said = await body(request, Reset)
        unit, window = _worded(lambda: window_of(said.kind), "kind")
        name = f"reset-{secrets.token_hex(8)}" if said.id is None else said.id
        place, given_back = await _worded_async(self._desk.reset(name, at, unit, window), "id")
        log.info("admin.reset", scope=at, unit=unit, window=place.window, id=name, given_back=given_back)
        new = given_back is not None
        return {"id": name, **place._asdict(), "given_back": given_back or 0, "new": new}

    async def _top_up(self, request: web.BaseRequest, at: str) -> object:
        said = await body(request, More)
        more = _limit(said.amount, "amount")
        try:
            one, new = await self._change(lambda: self._desk.top_up(said.id, at, more))
        except LookupError as error:
            raise Refused(Reason.NOT_FOUND, f"{error.args[0]}: there is nothing to add to.", param="amount") from None
        except ValueError as error:
            raise Refused(Reason.INVALID, f"{error}.", param="id", status=409) from None
        log.info("admin.topped_up", new=new, **added(one))
        return added(one) | {"new": new}

    # ---------------------------------------------------------------- what runs, and what was spent

    async def _holds(self, request: web.BaseRequest) -> object:
        return self._desk.holds(_count(query(request, "limit")))

    async def _spend(self, request: web.BaseRequest) -> object:
        said = query(request, "by", "since", "limit")
        by, since, limit = said.get("by", "user"), SINCE.fullmatch(said.get("since", "24h")), _count(said)
        if by not in BY:
            raise Refused(Reason.INVALID, f"Write one of {', '.join(BY)}.", param="by")
        if since is None:
            raise Refused(Reason.INVALID, "Write a number and s, m, h or d, such as 24h.", param="since")
        since_s = time.time() - int(since[1]) * SECONDS[since[2]]
        rows, recovered = await self._aside(lambda: self._desk.spend(by, since_s))
        return {"data": rows[:limit], "total": len(rows), "recovered": recovered}

    async def _replicas(self, request: web.BaseRequest) -> object:
        query(request)
        found = self._fleet()
        return {"replicas": found, "warnings": warnings(found)}

    async def _sla(self, request: web.BaseRequest) -> object:
        query(request)
        return self._promises()

    async def _prices(self, request: web.BaseRequest) -> object:
        query(request)
        unit = "micro-dollars for a million tokens"
        return {"unit": unit, "data": [{"model": model, **one._asdict()} for model, one in self._priced.items()]}

    # ---------------------------------------------------------------- keys

    async def _keys(self, request: web.BaseRequest) -> object:
        said = query(request, "limit", "after")
        limit = _count(said)
        found, following = await self._aside(lambda: self._desk.keys(said.get("after", ""), limit))
        return {"data": found, "next": following}

    async def _make_key(self, request: web.BaseRequest) -> object:
        query(request)
        said = await body(request, NewKey)
        limits = _limits(said.limits, "limits")
        try:
            made = await self._change(lambda: self._desk.make_key(said.user, said.org, said.team, limits))
        except ValueError as error:
            raise Refused(Reason.INVALID, f"{error}.", param="user") from None
        log.info("admin.key_made", key_id=made["key_id"])
        return made

    async def _revoke(self, request: web.BaseRequest, key_id: str) -> object:
        query(request)
        done, declared = await self._change(lambda: self._desk.revoke(key_id))
        if not done and declared:
            detail = "This key is declared in the configuration: remove it there."
            raise Refused(Reason.INVALID, detail, status=409)
        if not done:
            raise Refused(Reason.NOT_FOUND, "There is no such key in force.")
        log.info("admin.key_revoked", key_id=key_id)
        return {"key_id": key_id, "revoked": True}

    async def _change(self, work: Callable[[], T]) -> T:
        """Have a thread change something: whoever is answered finds it so."""
        answer = await self._aside(work)
        self._changed()
        return answer

    async def _aside(self, work: Callable[[], T]) -> T:
        """Have a thread do it. Raises Refused where too much waits, or too much is asked for."""
        if not self._places.acquire(blocking=False):
            raise Refused(Reason.OVERLOADED, "Too many questions wait on the admin port.", retry_after_s=1.0)
        try:
            done = self._threads.submit(work)
        except RuntimeError:
            self._places.release()
            raise Refused(Reason.OVERLOADED, "This gateway is stopping.", retry_after_s=1.0) from None
        done.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wrap_future(done)
        except Unknown as error:
            raise Refused(Reason.NOT_FOUND, str(error)) from None
        except TimeoutError as error:
            raise Refused(Reason.OVERLOADED, str(error), retry_after_s=1.0) from None


def _scope(text: str) -> str:
    """A scope as on the command line, percent-encoded as paths are; a «/» within a name is %2F, and so %252F here."""
    return _worded(lambda: parsed(unquote(text)), "scope")


def _worded(read: Callable[[], T], param: str) -> T:
    """Read what was said, or refuse it by name."""
    try:
        return read()
    except ValueError as error:
        hint = getattr(error, "context", None) or {}
        detail = f"{error}. {hint.get('hint', '')}".strip()
        raise Refused(Reason.INVALID, detail[0].upper() + detail[1:], param=param) from None


async def _worded_async(work: Awaitable[T], param: str) -> T:
    try:
        return await work
    except ValueError as error:
        raise Refused(Reason.INVALID, f"{error}.", param=param) from None


def _limit(text: str, param: str) -> Limit:
    return _worded(lambda: parse_limit(text), param)


def _limits(texts: list[str], param: str) -> list[Limit]:
    found = [_limit(text, f"{param}[{number}]") for number, text in enumerate(texts[: LIMITS_MAX + 1])]
    if len(found) > LIMITS_MAX:
        raise Refused(Reason.INVALID, f"There may be at most {LIMITS_MAX} of them.", param=param)
    if len({(one.unit, one.window) for one in found}) < len(found):
        raise Refused(Reason.INVALID, "Two of them are of the same unit and window.", param=param)
    return found


def _count(said: dict[str, str]) -> int:
    text = said.get("limit", str(PAGE))
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= PAGE_MAX:
        raise Refused(Reason.INVALID, f"Write a number from 1 to {PAGE_MAX}.", param="limit")
    return int(text)
