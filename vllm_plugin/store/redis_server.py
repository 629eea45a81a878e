"""One server of a page store: what is asked of it, and that nobody waits for it again after it did not answer.

A page is a hash `p:KEY`: field `m` its head, `0`, `1`, ... its bytes. It is written under another name, `t:`, and
renamed when all of it is there, so that it is there whole or not at all. `index` orders pages by their last use,
`sizes` and `bytes` say how large they are; `s:SESSION` has the pages that a session used, by position, and `sessions`
when it did; `g:SESSION` says to which generation it came, and `keeps` has the fingerprints that somebody serves. All of
it begins with PREFIX, and nothing else is touched. Pages expire by themselves.
"""

import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from vllm_plugin.store.contract import FENCE_S
from vllm_plugin.store.entries import session_key
from vllm_plugin.store.redis_address import Address
from vllm_plugin.store.redis_entries import HEAD_BYTES_MAX, Head, lengths

PREFIX = b"holdfast:pages:"
SOCKET_S_MAX = 0.5  # that a server may be silent
CONNECT_S_MAX = 0.25
SLOW_S_MAX = 0.3  # that a server may take to say which pages it has
CONNECTIONS_MAX = 64
HALF_WRITTEN_MS_MAX = 60_000
BATCH = 256
UNFENCED = -1

# It says no, or what is no answer: what others wrote there, or the server itself, may be of any type.
ODD = (redis.RedisError, TypeError, ValueError)
REFUSING = exceptions.AuthorizationError | exceptions.AuthenticationError | exceptions.BusyLoadingError
T = TypeVar("T")
Pipeline = Any  # of redis-py, whose types say nothing here

HEADS = """
local P, most, out = ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV do
  local page = P .. 'p:' .. ARGV[i]
  local size = redis.pcall('HSTRLEN', page, 'm')
  out[#out + 1] = type(size) == 'number' and size <= most and redis.call('HGET', page, 'm')
  if out[#out] == false and size ~= 0 then out[#out] = '' end
end
return out
"""
BEGIN = """
redis.call('HSET', ARGV[1], 'm', ARGV[2])
return redis.call('PEXPIRE', ARGV[1], ARGV[3])
"""
# How a script begins: sessions that had moved to a higher generation end it. Below 0 is no generation, and may always.
MAY_WRITE = """
local function may_write(P, s, generation, ms)
  if generation < 0 then return true end
  local name = P .. 'g:' .. s
  local highest = tonumber(redis.pcall('GET', name) or 0) or 0
  if generation > highest then redis.call('SET', name, string.format('%.0f', generation), 'PX', ms) end
  return generation >= highest
end
"""
MOVED = MAY_WRITE + """
may_write(ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4])
return 0
"""
FENCED = -2
PUT = MAY_WRITE + """
local P, t, k, n, now, ttl, s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local page, set = P .. 'p:' .. k, P .. 's:' .. s
if redis.call('HLEN', t) ~= tonumber(ARGV[4]) then redis.call('DEL', t) return -1 end
if not may_write(P, s, tonumber(ARGV[10]), ARGV[11]) then redis.call('DEL', t) return -2 end
redis.call('ZADD', P .. 'index', now, k)
local made = 0
if redis.call('HEXISTS', page, 'm') == 1 then redis.call('DEL', t) else
  local old = redis.call('HGET', P .. 'sizes', k)
  redis.call('INCRBY', P .. 'bytes', n - (old and tonumber(old) or 0))
  redis.call('HSET', P .. 'sizes', k, n)
  redis.call('RENAME', t, page)
  made = 1
end
redis.call('PEXPIRE', page, ttl)
redis.call('ZADD', set, 'NX', ARGV[9], k)
redis.call('PEXPIRE', set, ttl)
redis.call('ZADD', P .. 'sessions', now, s)
return made
"""
NOTE = MAY_WRITE + """
local P, s, now, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not may_write(P, s, tonumber(ARGV[5]), ARGV[6]) then return 0 end
local set, some = P .. 's:' .. s, false
for i = 7, #ARGV, 2 do
  if redis.call('PEXPIRE', P .. 'p:' .. ARGV[i], ttl) == 1 then
    redis.call('ZADD', P .. 'index', now, ARGV[i])
    redis.call('ZADD', set, 'NX', ARGV[i + 1], ARGV[i])
    some = true
  end
end
if some then redis.call('PEXPIRE', set, ttl) redis.call('ZADD', P .. 'sessions', now, s) end
return 1
"""
REMOVE = """
local P, out = ARGV[1], {}
for i = 2, #ARGV, 2 do
  local k, raw, page = ARGV[i], ARGV[i + 1], P .. 'p:' .. ARGV[i]
  local gone = -1
  if raw == '' or redis.pcall('HGET', page, 'm') == raw then
    local n = tonumber(redis.call('HGET', P .. 'sizes', k) or 0)
    local was = redis.call('DEL', page)
    redis.call('ZREM', P .. 'index', k)
    if redis.call('HDEL', P .. 'sizes', k) == 1 then redis.call('DECRBY', P .. 'bytes', n) end
    if was == 1 then gone = n end
  end
  out[#out + 1] = gone
end
return out
"""


class Ready(NamedTuple):
    """A page as it is put. session, generation: who puts it; UNFENCED for a copy of what is there."""

    key: bytes
    head: Head
    pieces: Sequence[Any]
    session: str
    generation: int


class Unreachable(Exception):
    """It does not answer, or did not a moment ago."""


class Server:
    """Used by many threads. Whatever is asked raises Unreachable, SOCKET_S_MAX after its last word at the latest.

    After that it does so at once, until `revive` has had an answer: engines wait for a silent server once, and it is
    the writer's thread that tries.
    """

    def __init__(self, at: tuple[str, int], wanted: Address, failed: Callable[[Exception], None]) -> None:
        host, port = at
        self.name = f"{host}:{port}"
        self._failed = failed
        self._down = self._closed = False
        self._client = redis.Redis(
            host=host, port=port, db=wanted.database, password=wanted.password, protocol=2,
            retry=Retry(NoBackoff(), 0), socket_timeout=SOCKET_S_MAX, socket_connect_timeout=CONNECT_S_MAX,
            max_connections=CONNECTIONS_MAX, **(_by_tls(wanted) if wanted.tls else {}),
        )  # fmt: skip

    def ask(self, words: Callable[[Pipeline], None]) -> list[Any]:
        """What it says to each of some commands; an exception where it says no."""
        if self._down or self._closed:
            raise Unreachable(f"{self.name} did not answer")
        return self._ask(words)

    def revive(self) -> None:
        """Ask it again, if it did not answer. Takes as long as asking does."""
        if self._down and not self._closed:
            begun_s = time.monotonic()
            with suppress(Unreachable):
                self._ask(lambda pipeline: pipeline.execute_command("PING"))
                self._down = time.monotonic() - begun_s > SLOW_S_MAX

    def leave_out(self, seconds: float) -> None:
        """It answers, but so late that whoever asks is better off without it."""
        self._down = True
        self._failed(TimeoutError(f"{self.name} took {seconds:.2f} s"))

    def told(self, error: Exception) -> None:
        """It answers, but what it says is of no use."""
        self._failed(error)

    def _ask(self, words: Callable[[Pipeline], None]) -> list[Any]:
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                words(pipeline)
                answers: list[Any] = pipeline.execute(raise_on_error=False)
        except (redis.RedisError, OSError, ValueError) as error:  # ValueError: what it says is no Redis' answer
            self._down = True
            self._failed(error)
            raise Unreachable(f"{self.name}: {type(error).__name__}") from error
        for answer in answers:
            if isinstance(answer, REFUSING):
                self._failed(answer)
                raise Unreachable(f"{self.name}: {answer}")
        return answers

    def one(self, *words: Any) -> Any:
        """What it says to one command. Raises redis.ResponseError."""
        (answer,) = self.ask(lambda pipeline: pipeline.execute_command(*words))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def heads(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What lies there as heads; b"" for what is no page at all, or longer than any head."""
        commands = (("EVAL", HEADS, 0, PREFIX, HEAD_BYTES_MAX, *some) for some in batched(keys, BATCH))
        found: list[bytes | None] = []
        for some in self.ask(lambda pipeline: _each(pipeline, commands)):
            if isinstance(some, Exception):
                raise some
            found += some
        return found

    def payloads(self, wanted: Sequence[tuple[bytes, int]]) -> list[list[bytes] | None]:
        """The pieces of pages, by key and size in bytes; None where one is missing, or has another length.

        The lengths are asked for first: who can write to a server must not fill an engine's memory.
        """
        pages = [(PREFIX + b"p:" + key, lengths(size)) for key, size in wanted]
        asked = [("HSTRLEN", name, piece) for name, sizes in pages for piece in range(len(sizes))]
        told = iter(self.ask(lambda pipeline: _each(pipeline, asked)) if asked else [])
        fit = [[next(told) for _ in sizes] == sizes for _, sizes in pages]
        commands = [("HMGET", name, *range(len(sizes))) for (name, sizes), good in zip(pages, fit, strict=True) if good]
        answers = iter(self.ask(lambda pipeline: _each(pipeline, commands)) if commands else [])
        found = [next(answers) if good else None for good in fit]
        whole = [isinstance(one, list) and all(isinstance(piece, bytes) for piece in one) for one in found]
        return [one if good else None for one, good in zip(found, whole, strict=True)]

    def put(self, pages: Sequence["Ready"], now_s: float, retention_s: float) -> list[Any]:
        """Write pages: 1: written, 0: one was there, FENCED: whose session had moved, else what failed."""
        ends = [0]

        def words(pipeline: Pipeline) -> None:
            for key, head, pieces, session, generation in pages:
                half = PREFIX + b"t:" + os.urandom(16)
                pipeline.execute_command("EVAL", BEGIN, 0, half, head.raw, HALF_WRITTEN_MS_MAX)
                for number, piece in enumerate(pieces):
                    pipeline.execute_command("HSET", half, number, piece)
                manifest = head.manifest
                pipeline.execute_command(
                    "EVAL", PUT, 0, PREFIX, half, key, len(pieces) + 1, manifest.page_bytes,
                    repr(now_s), int(retention_s * 1000), session_key(session), manifest.position,
                    generation, int(FENCE_S * 1000),
                )  # fmt: skip
                pipeline.execute_command("DEL", half)
                ends.append(len(pipeline))

        answers = self.ask(words)
        each = [answers[begin:end] for begin, end in pairwise(ends)]
        return [next((one for one in some if isinstance(one, Exception)), some[-2]) for some in each]

    def note(
        self, pages: Iterable[tuple[bytes, int]], session: str, generation: int, now_s: float, retention_s: float
    ) -> bool:
        """A session uses pages, each of key and position; False where it had moved."""
        done = []
        for some in batched(pages, BATCH):
            placed = (word for page in some for word in page)
            done.append(self.one(
                "EVAL", NOTE, 0, PREFIX, session_key(session), repr(now_s), int(retention_s * 1000), generation,
                int(FENCE_S * 1000), *placed,
            ))  # fmt: skip
        return all(done)

    def moved(self, session: str, generation: int) -> None:
        """A session came to this generation."""
        self.one("EVAL", MOVED, 0, PREFIX, session_key(session), generation, int(FENCE_S * 1000))

    def remove(self, pages: Iterable[tuple[bytes, bytes]]) -> dict[bytes, int]:
        """Remove pages, each of key and of the head it must have (b"": any); those that went, and their sizes."""
        gone: dict[bytes, int] = {}
        for some in batched(pages, BATCH):
            sizes = self.one("EVAL", REMOVE, 0, PREFIX, *(word for page in some for word in page))
            gone |= {key: size for (key, _), size in zip(some, sizes, strict=True) if size >= 0}
        return gone

    def coldest(self, number: int, before_s: float | None = None) -> list[bytes]:
        """Keys of pages that were not used for longest; before_s: only those not used since then."""
        until = "+inf" if before_s is None else f"({before_s!r}"
        keys: list[bytes] = self.one("ZRANGEBYSCORE", PREFIX + b"index", "-inf", until, "LIMIT", 0, number)
        return keys

    def coldest_sessions(self, number: int) -> list[tuple[bytes, float]]:
        """Those that nobody used for longest, and when they were used, in s since 1970."""
        return _pairs(self.one("ZRANGE", PREFIX + b"sessions", 0, number - 1, "WITHSCORES"))

    def last_pages(self, name: bytes, used_s: float, need_bytes: int) -> dict[bytes, int]:
        """A session's last pages, as many as are so large together; none that others used after it; and their sizes.

        Only BATCH of them are looked at. Those that are not there any more are struck from its list.
        """
        keys = self.one("ZREVRANGE", PREFIX + b"s:" + name, 0, BATCH - 1)
        if not keys:
            self.one("ZREM", PREFIX + b"sessions", name)
            return {}
        scores = self.one("ZMSCORE", PREFIX + b"index", *keys)
        sizes = self.one("HMGET", PREFIX + b"sizes", *keys)
        found: dict[bytes, int] = {}
        stale = []
        for key, score, size in zip(keys, scores, sizes, strict=True):
            if score is None:
                stale.append(key)
            elif float(score) <= used_s and sum(found.values()) < need_bytes:
                found[key] = int(size or 0)
        if stale:
            self.one("ZREM", PREFIX + b"s:" + name, *stale)
        return found

    def all_keys(self) -> Iterator[list[bytes]]:
        """Of all pages, in some order; once each at least."""
        cursor = b"0"
        while True:
            cursor, found = self.one("ZSCAN", PREFIX + b"index", cursor, "COUNT", BATCH)
            yield [key for key, _ in _pairs(found)]
            if int(cursor) == 0:
                return

    def forget_all(self) -> None:
        """Remove whatever begins with the prefix."""
        cursor = b"0"
        while True:
            cursor, names = self.one("SCAN", cursor, "MATCH", PREFIX + b"*", "COUNT", BATCH)
            if names:
                self.one("DEL", *names)
            if int(cursor) == 0:
                return

    def close(self) -> None:
        """Nothing is asked of it any more."""
        self._closed = True
        self._client.close()


def _by_tls(wanted: Address) -> dict[str, Any]:
    """It must be who it is called: its certificate names the host as the address does."""
    return {
        "ssl": True, "ssl_ca_certs": wanted.ca_file and str(wanted.ca_file), "ssl_cert_reqs": "required",
        "ssl_check_hostname": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }  # fmt: skip


def _pairs(listed: list[Any]) -> list[tuple[bytes, float]]:
    """Members and scores, whether redis-py paired them or not."""
    if listed and isinstance(listed[0], tuple | list):
        return [(member, float(score)) for member, score in listed]
    return [(member, float(score)) for member, score in zip(listed[::2], listed[1::2], strict=True)]


def batched(all_: Iterable[T], number: int) -> Iterator[list[T]]:
    """So many at a time."""
    rest = iter(all_)
    while some := list(islice(rest, number)):
        yield some


def _each(pipeline: Pipeline, commands: Iterable[tuple[Any, ...]]) -> None:
    for words in commands:
        pipeline.execute_command(*words)
