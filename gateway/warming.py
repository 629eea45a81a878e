"""Has servers load what they will need: the pages of a stream or a session that is to go on there.

One token is asked for, with the ids so far as its prompt. A server with a page store loads their pages into its prefix
cache for that, and computes what it does not find. Nobody is charged for it: it is counted as the house's.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import msgspec

from gateway.fleet.canary import COMPLETIONS
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from gateway.stream.call import Call
from gateway.stream.leg import Target
from gateway.stream.upstream import Upstream
from gateway.stream.wire import Usage, encode
from guards.place import BANDS
from guards.warmth import Bounds

KV_USED_MAX = 0.95  # of its cache; what is loaded beyond that puts out what others need


class Outcome(StrEnum):
    """What became of it; a metric label."""

    LOADED = "loaded"
    BUSY = "busy"  # not asked: it is overloaded, or not well
    FULL = "full"  # not asked: too much else is being warmed
    LATE = "late"
    REFUSED = "refused"


class Warmed(NamedTuple):
    """tokens: of the prompt. cached: those that needed no computing, as far as was told. took_s: seconds."""

    outcome: Outcome
    tokens: int = 0
    cached: int = 0
    took_s: float = 0.0


class Hears(Protocol):
    """Counts."""

    def warmed(self, replica: str, outcome: str, model: str, tokens: int) -> None: ...


class _Answer(msgspec.Struct):
    usage: Usage | None = None


class Warmer:
    """Asks, bounded at once and per replica; one that is overloaded is never asked."""

    def __init__(
        self, fleet: Fleet, upstream: Upstream, targets: dict[str, Target], hears: Hears, bounds: Bounds
    ) -> None:
        self._fleet, self._upstream, self._targets, self._hears, self.bounds = fleet, upstream, targets, hears, bounds
        self._all = asyncio.Semaphore(bounds.at_once)
        self._each: dict[str, asyncio.Semaphore] = {}  # by replica

    async def warm(self, name: str, call: Call, ids: Sequence[int], *, wait: bool = True) -> Warmed:
        """Have a replica load the pages of these ids, as a request like this one would use them.

        wait: for its turn; else it is done at once or not at all.
        """
        warmed = await self._warm(name, call, ids, wait)
        self._hears.warmed(name, warmed.outcome, call.model, warmed.tokens)
        return warmed

    async def _warm(self, name: str, call: Call, ids: Sequence[int], wait: bool) -> Warmed:
        begun_s = time.monotonic()
        each = self._each.setdefault(name, asyncio.Semaphore(self.bounds.per_replica))
        if not wait and (each.locked() or self._all.locked()):
            return Warmed(Outcome.FULL)
        try:
            async with asyncio.timeout(self.bounds.within_s), _both(each, self._all):
                if not takes(self._fleet.named(name), self.bounds.per_replica):
                    return Warmed(Outcome.BUSY)
                body = encode(asked(call, ids, self._fleet.window(call.model)))
                end = await self._upstream.fetch(self._targets[name], COMPLETIONS, body, self.bounds.within_s)
        except TimeoutError:
            return Warmed(Outcome.LATE)
        took_s = time.monotonic() - begun_s
        if end.status != 200:
            return Warmed(Outcome.LATE if end.silent else Outcome.REFUSED, took_s=took_s)
        return Warmed(Outcome.LOADED, len(ids), _cached(end.body), took_s)


def takes(replica: Replica, loads: int) -> bool:
    """Whether it may be asked: it is well, and has room.

    loads: that it may have at once. To vLLM who waits for pages is waiting, and so is who then goes on there: twice as
    many wait for no want of room.
    """
    gauges = replica.gauges
    if not replica.health.up or replica.drained or replica.pulse.silent:
        return False
    return gauges is None or not ((gauges.waiting or 0) > 2 * loads or (gauges.kv_used or 0.0) > KV_USED_MAX)


def asked(call: Call, ids: Sequence[int], window: int | None) -> dict[str, Any]:
    """The request for one token. It goes after all others, where servers go by priority."""
    prompt = list(ids if window is None else ids[: window - 1])
    said: dict[str, Any] = {"model": call.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    if (salt := call.body.get("cache_salt")) is not None:
        said["cache_salt"] = salt
    if "priority" in call.body:
        said["priority"] = BANDS - 1
    return said


def _cached(body: bytes) -> int:
    try:
        usage = msgspec.json.decode(body, type=_Answer).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return 0 if usage is None else usage.cached


@asynccontextmanager
async def _both(one: asyncio.Semaphore, other: asyncio.Semaphore) -> Any:
    async with one, other:
        yield
