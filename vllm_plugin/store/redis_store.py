"""Pages on Redis or Valkey, for the engines of many hosts.

Whoever can reach the servers can read and change what is there. So a page is sealed with a key that the servers do not
have, together with the key that it lies under: what does not bear the right seal is not there. No server is trusted to
be up, to be quick or to be right, and none keeps an engine waiting for longer than the limits below.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from vllm_plugin.store import redis_address
from vllm_plugin.store.contract import (
    KEY_BYTES_MAX,
    QUARANTINE_S,
    WAIT_S,
    Erased,
    Page,
    Quarantine,
    Session,
    Stats,
    StoreRefused,
    Writing,
)
from vllm_plugin.store.entries import session_name
from vllm_plugin.store.queue import Queue
from vllm_plugin.store.redis_copies import Copies, Found, Wrong
from vllm_plugin.store.redis_entries import Seals
from vllm_plugin.store.redis_server import ODD, PREFIX, Server, Unreachable, batched
from vllm_plugin.store.redis_versions import Versions
from vllm_plugin.store.redis_writes import SESSIONS_MAX, Writes
from vllm_plugin.store.seen import Seen
from vllm_plugin.store.writer import Writer

T = TypeVar("T")

HELD_S_MAX = 1.0  # after this no server is asked any more; the one that was asked last has SOCKET_S_MAX to answer
READ_S_MAX = 5.0  # the same
TIDY_S_MAX = 2.0  # and so often a server that did not answer is asked again
SIZES = 1024
ON_ALL = " on all servers"


class RedisStore:
    """A `PageStore` on servers. Made by `open`."""

    @classmethod
    def open(cls, url: str, *, make: bool = True) -> "RedisStore":
        """Open what an address names: see `stores.open_store`. Raises StoreRefused.

        make: engines start without their servers too, which may come later. Whoever makes none needs one that answers.
        """
        store = cls(redis_address.read(url))
        if not make and not any(store._quietly(partial(server.one, "PING")) for server in store._servers):
            store.close(0)
            raise StoreRefused(f"{store._wanted.name}: no server answers: {store._seen.failure}")
        return store

    def __init__(self, wanted: redis_address.Address, clock: Callable[[], float] = time.time) -> None:
        self._wanted = wanted
        self._seen = Seen(wanted.name)
        seals, self._versions = Seals(wanted.key), Versions()
        self._servers = [Server(at, wanted, self._seen.failed) for at in wanted.servers]
        self._copies = Copies(self._servers, wanted.copies, seals, self._versions)
        self._writes = Writes(
            self._copies, seals, self._versions, self._seen, clock, wanted.size_bytes, wanted.retention_s
        )
        self._writer = Writer(wanted.queue_bytes, self._tidy, min(TIDY_S_MAX, wanted.retention_s / 4))
        self._queue = Queue(wanted.name, self._writer, self._seen, self._writes.put, (Unreachable,))

    def put(self, pages: Sequence[Page], within_s: float = WAIT_S) -> bool:
        """See `PageStore.put`. A page is there as soon as one server has it."""
        return self._queue.awaited(self._queue.put(pages), within_s) is True

    def put_soon(self, pages: Sequence[Page]) -> bool:
        """See `PageStore.put_soon`."""
        return self._queue.put(pages) is not None

    def used_soon(self, keys: Sequence[bytes], session: str, generation: int = 0) -> bool:
        """See `PageStore.used_soon`."""
        noted = list(keys)
        return self._queue.do(lambda: self._writes.note(noted, session, generation), sum(map(len, noted)))

    def moved_soon(self, session: str, generation: int) -> bool:
        """See `PageStore.moved_soon`. A server that does not answer then learns it with the next page."""
        return self._queue.do(lambda: self._writes.moved(session, generation))

    def held(self, keys: Sequence[bytes]) -> int:
        """See `PageStore.held`. What is wrong in a page's bytes shows only when it is read."""
        erasures = self._writes.erasures
        found, wrong = self._copies.find(keys, time.monotonic() + HELD_S_MAX, whole=False)
        self._mend({}, [one for one in wrong if one.raw is not None], erasures)
        return next((count for count, key in enumerate(keys) if key not in found), len(keys))

    @contextmanager
    def read(self, keys: Sequence[bytes]) -> Iterator[list[Page | None]]:
        """See `PageStore.read`. It is a copy, and stays as it is for as long as it is looked at."""
        erasures = self._writes.erasures
        found, wrong = self._copies.find(keys, time.monotonic() + READ_S_MAX, whole=True)
        self._mend(found, wrong, erasures)
        views = {key: memoryview(_joined(copy.pieces)) for key, copy in found.items()}
        del wrong
        pages = [Page(key, found[key].head.manifest, views[key]) if key in found else None for key in keys]
        try:
            yield pages
        except BaseException:
            _released(views)
            raise
        if not _released(views):
            raise BufferError("a page's payload is still looked at, behind its read: copy what is to be kept")

    def quarantine(self, key: bytes, digest: bytes, within_s: float = QUARANTINE_S) -> Quarantine:
        """See `PageStore.quarantine`."""
        self._versions.deny(key, digest)
        self._queue.drop(key, digest)
        answer = self._writer.submit(lambda: self._writes.quarantine(key, digest), urgent=True)
        return self._queue.awaited(answer, within_s) or Quarantine.PENDING

    def erase(self, session: str, within_s: float = WAIT_S) -> Erased:
        """See `PageStore.erase`. StoreBusy also where a server does not answer: what it has stays until it is asked."""
        return self._queue.erased(lambda: self._writes.erase(session), within_s, ON_ALL)

    def erase_all(self, within_s: float = WAIT_S) -> Erased:
        """See `PageStore.erase_all`, and `erase`."""
        return self._queue.erased(self._writes.erase_all, within_s, ON_ALL)

    def sweep(self, keep: bytes, within_s: float = WAIT_S) -> Erased:
        """See `PageStore.sweep`."""
        assert 0 < len(keep) <= KEY_BYTES_MAX, "a fingerprint"
        return self._queue.awaited(self._writer.submit(lambda: self._writes.sweep(keep)), within_s) or Erased()

    def sessions(self) -> list[Session]:
        """See `PageStore.sessions`; of the servers that answer."""
        used_s: dict[bytes, float] = {}
        sizes: dict[bytes, dict[bytes, int]] = {}
        for server in self._servers:
            for name, score_s, pages in self._quietly(partial(_told, server)) or ():
                used_s[name] = max(used_s.get(name, 0.0), score_s)
                sizes.setdefault(name, {}).update(pages)
        told = [Session(session_name(name), len(of), sum(of.values()), used_s[name]) for name, of in sizes.items()]
        return sorted(told, key=lambda one: one.used_s, reverse=True)

    def stats(self) -> Stats:
        """See `PageStore.stats`. Pages and bytes as if of each all copies were there; sessions: of all servers."""
        pages = bytes_ = 0
        sessions: set[bytes] = set()
        for server in self._servers:
            has = self._quietly(partial(_has, server)) or (0, 0, ())
            pages, bytes_ = pages + has[0], bytes_ + has[1]
            sessions.update(has[2])
        return Stats(
            pages=-(-pages // self._wanted.copies),
            bytes=-(-bytes_ // self._wanted.copies),
            sessions=len(sessions),
            size_bytes=self._wanted.size_bytes * len(self._servers) // self._wanted.copies,
            queued_bytes=self._writer.waiting_bytes,
            failure=self._seen.failure,
            aside="",
            **self._seen.numbers(),
        )

    def writing(self) -> Writing:
        """See `PageStore.writing`."""
        return self._queue.writing()

    def close(self, within_s: float = WAIT_S) -> None:
        """See `PageStore.close`."""
        self._writer.close(within_s)
        for server in self._servers:
            server.close()

    def _mend(self, found: dict[bytes, Found], wrong: list[Wrong], erasures: int) -> None:
        """Soon, if not too much waits; else whoever reads these pages next sees to it."""
        if wrong:
            good = {one.key: found[one.key] for one in wrong if one.key in found}
            wrong = [one for one in wrong if one.key in good or one.raw is not None]
            cost_bytes = sum(copy.head.manifest.page_bytes for copy in good.values())
            if wrong:
                self._writer.submit(lambda: self._writes.mend(good, wrong, erasures), cost_bytes)

    def _quietly(self, what: Callable[[], T]) -> T | None:
        """Its answer; what fails is counted, and answers nothing."""
        try:
            return what()
        except Unreachable:
            return None
        except ODD as error:
            self._seen.failed(error)
            return None

    def _tidy(self) -> None:
        """From time to time."""
        for server in self._servers:
            server.revive()
        for version in self._versions.all_denied():  # those that could not be removed when they were found
            if self._writes.quarantine(*version) is Quarantine.PENDING:
                break
        self._writes.forget()


def _has(server: Server) -> tuple[int, int, set[bytes]]:
    """Pages of one server, their bytes, and the names of sessions."""
    pages, size = server.one("ZCARD", PREFIX + b"index"), server.one("GET", PREFIX + b"bytes")
    return int(pages or 0), int(size or 0), set(server.one("ZRANGE", PREFIX + b"sessions", 0, SESSIONS_MAX))


def _told(server: Server) -> list[tuple[bytes, float, dict[bytes, int]]]:
    """Sessions of one server: name, when it was used last, in s since 1970, and the sizes of its pages."""
    told: list[tuple[bytes, float, dict[bytes, int]]] = []
    for name, used_s in server.coldest_sessions(SESSIONS_MAX):
        sizes: dict[bytes, int] = {}
        for keys in batched(server.one("ZRANGE", PREFIX + b"s:" + name, 0, -1), SIZES):
            found = server.one("HMGET", PREFIX + b"sizes", *keys)
            sizes |= {key: int(size) for key, size in zip(keys, found, strict=True) if size is not None}
        told.append((name, used_s, sizes))
    return told


def _joined(pieces: list[bytes]) -> bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _released(views: dict[bytes, memoryview]) -> bool:
    """Whether nobody looks at them any more."""
    over = True
    for view in views.values():
        try:
            view.release()
        except BufferError:
            over = False
    return over
