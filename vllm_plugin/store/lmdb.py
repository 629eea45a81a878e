"""Pages in shared memory: one LMDB environment, used by all engines of a host.

LMDB, because a process that dies at any moment leaves it readable: it never writes over what can be seen, and its
lock is one that the kernel takes back. Flags: `writemap` writes into the map, which is one copy of a page and not
three; `sync=False`, since what lies in shared memory outlives processes and nothing else, whatever is flushed.

There is one lock for all who write, of all processes, and waiting for it has no limit. So whatever writes is a job of
one thread, and only that waits; whoever gave the job waits as long as they say, or not at all.
"""

import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import lmdb

from vllm_plugin.store import address
from vllm_plugin.store.contract import (
    KEY_BYTES_MAX,
    QUARANTINE_S,
    READ_S_MAX,
    WAIT_S,
    Erased,
    Manifest,
    Page,
    Quarantine,
    Session,
    Stats,
    StoreRefused,
    Writing,
)
from vllm_plugin.store.directory import Directory
from vllm_plugin.store.entries import Entry, decoded
from vllm_plugin.store.memory import Lent, Map, Populating, map_of
from vllm_plugin.store.queue import Queue
from vllm_plugin.store.reads import Ended, Reads, Snapshot
from vllm_plugin.store.seen import Seen
from vllm_plugin.store.tables import Tables
from vllm_plugin.store.writer import Writer
from vllm_plugin.store.writes import Writes

T = TypeVar("T")
log = logging.getLogger(__name__)

READERS_MAX = 512  # of all processes, at once
OPEN_S_MAX = 10.0
TIDY_S_MAX = READ_S_MAX / 2

_opened: dict[tuple[int, Path], "LmdbStore"] = {}  # of this process: LMDB's files must not be opened twice in one
_opening = threading.Lock()


class _Found(NamedTuple):
    key: bytes
    manifest: Manifest
    payload: memoryview


class LmdbStore:
    """A `PageStore` in shared memory. Made by `open`; two openings of one directory in one process are one store."""

    @classmethod
    def open(cls, url: str, *, populate: bool = True, make: bool = True) -> "LmdbStore":
        """Open what an address names: see `stores.open_store`. Raises StoreRefused."""
        wanted = address.read(url)
        with _opening:
            place = (os.getpid(), wanted.directory.resolve())
            if any(pid != place[0] and path == place[1] for pid, path in _opened):
                raise StoreRefused(f"{wanted.directory} was opened before this process was forked: open it behind that")
            store = _opened.get(place)
            if store is None:
                store = _opened[place] = cls(wanted, populate=populate, make=make)
            elif store._openings:
                store._openings += 1
            else:
                raise StoreRefused(f"{wanted.directory} could not be closed by this process, which must end first")
            return store

    def __init__(self, wanted: address.Address, *, populate: bool, make: bool, clock: Callable[[], float] = time.time):
        self._openings = 1
        self._directory = Directory(wanted.directory, wanted.size_bytes)
        self._seen = Seen(str(wanted.directory))
        with self._directory.begun(make=make) as first:
            self._env, self._where = self._environment(first)
            self._tables = self._readied(self._where, first)
        self._writes = Writes(self._tables, self._seen, clock, wanted.retention_s)
        self._denied: set[tuple[bytes, bytes]] = set()  # wrong versions that are not removed yet; as many as pages
        self._left_behind = False
        self._reads = Reads(self._tables.reading)
        self._populating = Populating(self._where) if populate else None
        self._writer = Writer(wanted.queue_bytes, self._tidy, min(TIDY_S_MAX, wanted.retention_s / 4))
        self._queue = Queue(str(wanted.directory), self._writer, self._seen, self._writes.put)

    def put(self, pages: Sequence[Page], within_s: float = WAIT_S) -> bool:
        """See `PageStore.put`."""
        return self._queue.awaited(self._queue.put(pages), within_s) is True

    def put_soon(self, pages: Sequence[Page]) -> bool:
        """See `PageStore.put_soon`."""
        return self._queue.put(pages) is not None

    def used_soon(self, keys: Sequence[bytes], session: str, generation: int = 0) -> bool:
        """See `PageStore.used_soon`."""
        noted = list(keys)
        return self._queue.do(lambda: self._writes.note(noted, session, generation), sum(map(len, noted)))

    def moved_soon(self, session: str, generation: int) -> bool:
        """See `PageStore.moved_soon`."""
        return self._queue.do(lambda: self._writes.moved(session, generation))

    def held(self, keys: Sequence[bytes]) -> int:
        """See `PageStore.held`."""
        with self._quietly(), self._reads.snapshot() as snapshot:
            for count, key in enumerate(keys):
                if not self._entry(snapshot, key):
                    return count
            return len(keys)
        return 0

    @contextmanager
    def read(self, keys: Sequence[bytes]) -> Iterator[list[Page | None]]:
        """See `PageStore.read`."""
        found: list[Page | None] = [None] * len(keys)
        lent: Lent | None = None
        with self._quietly(lambda: lent is None), self._reads.snapshot() as snapshot:
            pages = [self._page(snapshot, key) for key in keys]
            lent = Lent(self._where, [page.payload for page in pages if page])
            views = iter(lent.views)
            found = [page and Page(page.key, page.manifest, next(views)) for page in pages]
            del pages, views
            snapshot.lent = True
            try:
                yield found
            except BaseException:
                self._take_back(lent)
                raise
            if not self._take_back(lent):
                raise BufferError("a page's payload is still looked at, behind its read: copy what is to be kept")
            return
        yield found

    def quarantine(self, key: bytes, digest: bytes, within_s: float = QUARANTINE_S) -> Quarantine:
        """See `PageStore.quarantine`."""
        self._denied.add((key, digest))
        self._queue.drop(key, digest)
        answer = self._writer.submit(lambda: self._removed(key, digest), urgent=True)
        return self._queue.awaited(answer, within_s) or Quarantine.PENDING

    def erase(self, session: str, within_s: float = WAIT_S) -> Erased:
        """See `PageStore.erase`."""
        return self._queue.erased(lambda: self._tables.erase(session), within_s)

    def erase_all(self, within_s: float = WAIT_S) -> Erased:
        """See `PageStore.erase_all`."""
        return self._queue.erased(self._tables.erase_all, within_s)

    def sweep(self, keep: bytes, within_s: float = WAIT_S) -> Erased:
        """See `PageStore.sweep`."""
        assert 0 < len(keep) <= KEY_BYTES_MAX, "a fingerprint"
        return self._queue.awaited(self._writer.submit(lambda: self._writes.sweep(keep)), within_s) or Erased()

    def sessions(self) -> list[Session]:
        """See `PageStore.sessions`."""
        with self._quietly(), self._reads.snapshot() as snapshot:
            return self._tables.told(snapshot.txn)
        return []

    def stats(self) -> Stats:
        """See `PageStore.stats`."""
        pages = taken = sessions = 0
        with self._quietly(), self._reads.snapshot() as snapshot:
            pages = snapshot.txn.stat(self._tables.manifests)["entries"]
            sessions = snapshot.txn.stat(self._tables.sessions)["entries"]
            taken = self._tables.used_bytes(snapshot.txn)
        return Stats(
            pages=pages,
            bytes=taken,
            sessions=sessions,
            size_bytes=self._directory.size_bytes,
            populated_bytes=self._populating.done_bytes if self._populating else 0,
            queued_bytes=self._writer.waiting_bytes,
            failure=self._seen.failure,
            aside=self._directory.aside,
            **self._seen.numbers(),
        )

    def writing(self) -> Writing:
        """See `PageStore.writing`."""
        return self._queue.writing()

    def close(self, within_s: float = WAIT_S) -> None:
        """See `PageStore.close`. Of several openings in one process, the last one's counts.

        Where a write does not end, or a payload is still looked at, the map stays until the process ends.
        """
        with _opening:
            self._openings -= 1
            if self._openings:
                return  # to others in this process
            deadline_s = time.monotonic() + within_s
            if self._populating:
                self._populating.close()
            written = self._writer.close(within_s)
            over = self._reads.close(max(0.0, deadline_s - time.monotonic()))
            if written and over and not self._left_behind:
                self._env.close()
                self._directory.close()
                _opened.pop((os.getpid(), self._directory.path.resolve()), None)
            else:
                log.warning("pages: %s stays open until this process ends", self._directory.path)

    # What waits, and what fails.

    @contextmanager
    def _quietly(self, ours: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """What fails here is told and counted, and answers nothing."""
        try:
            yield
        except Ended:
            pass
        except lmdb.Error as error:
            if not ours():
                raise
            self._seen.failed(error)

    # What reads.

    def _entry(self, snapshot: Snapshot, key: bytes) -> Entry | None:
        """What a key stands for here; what is damaged is removed."""
        stored = snapshot.txn.get(key, None, self._tables.manifests)
        if stored is None:
            return None
        entry = decoded(key, stored)
        if entry is None:
            self._writer.submit(lambda: self._writes.drop_damaged(key))
        elif (key, entry.manifest.digest) in self._denied:
            return None
        return entry

    def _page(self, snapshot: Snapshot, key: bytes) -> "_Found | None":
        entry = self._entry(snapshot, key)
        if entry is None:
            return None
        payload = self._tables.payload(snapshot.txn, entry)
        if payload is None:
            self._writer.submit(lambda: self._writes.drop_damaged(key))
            return None
        return _Found(key, entry.manifest, payload)

    def _take_back(self, lent: Lent) -> bool:
        """Whether nobody looks at the memory any more. If somebody does, it stays mapped for ever."""
        over = lent.take_back()
        self._left_behind |= not over
        return over

    def _removed(self, key: bytes, digest: bytes) -> Quarantine:
        done = self._writes.quarantine(key, digest)
        self._denied.discard((key, digest))
        return done

    def _tidy(self) -> None:
        """From time to time."""
        self._seen.count("overdue", self._reads.end_overdue())
        self._env.reader_check()  # of processes that died while they read
        for version in list(self._denied):  # those that could not be removed when they were found
            self._removed(*version)
        self._tables.clear_all()
        self._writes.forget()

    def _environment(self, first: bool) -> tuple[lmdb.Environment, Map]:
        """LMDB's environment, and where it lies in memory. Raises StoreRefused."""
        try:
            env = self._opened_by_lmdb()
        except lmdb.Error as error:
            if first:
                self._directory.remove()
            raise StoreRefused(f"{self._directory.path}: {error}") from error
        try:
            if first:
                self._directory.preallocate()
            where = map_of(self._directory.data)
            if where is None:
                raise StoreRefused(f"{self._directory.data} is not to be found in /proc/self/maps: Linux is needed")
            return env, where
        except BaseException:
            env.close()
            if first:
                self._directory.remove()
            raise

    def _readied(self, where: Map, first: bool) -> Tables:
        """The tables, mended by who is first. Raises StoreRefused: after OPEN_S_MAX too, as that takes the lock."""
        answer: Future[Tables] = Future()
        env, size_bytes = self._env, self._directory.size_bytes

        def ready() -> None:
            try:
                tables = Tables(env, size_bytes, where.zero)
                self._seen.count("damaged", tables.mend() if first else 0)
            except Exception as error:
                answer.set_exception(error)
            else:
                if answer.set_running_or_notify_cancel():
                    return answer.set_result(tables)
            return env.close()

        threading.Thread(target=ready, name="holdfast-open", daemon=True).start()
        place = self._directory.path
        try:
            return answer.result(OPEN_S_MAX)
        except NotInTime:
            answer.cancel()
            who = f"fuser {shlex.quote(str(self._directory.data))}"
            raise StoreRefused(f"another process has held the lock of {place} for {OPEN_S_MAX:g} s: {who}") from None
        except lmdb.Error as error:
            raise StoreRefused(f"{place}: {error}. Run: holdfast pages erase --all") from error

    def _opened_by_lmdb(self) -> lmdb.Environment:
        directory = self._directory
        env = lmdb.open(
            str(directory.path),
            map_size=directory.size_bytes,
            mode=0o600,
            max_dbs=Tables.COUNT,
            max_readers=READERS_MAX,
            writemap=True,
            sync=False,
            metasync=False,
            readahead=False,
            lib_version=0,
        )
        directory.make_private()
        return env


def remove_files(url: str) -> bool:
    """Remove a store's files, damaged ones too, if no process uses them; whether they were. Raises StoreRefused."""
    wanted = address.read(url)
    directory = Directory(wanted.directory, wanted.size_bytes)
    with directory.alone() as alone:
        if alone:
            directory.remove()
    return alone
