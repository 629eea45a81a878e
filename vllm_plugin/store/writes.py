"""What the writer's thread does: pages put, evicted, quarantined and swept."""

import time
from collections.abc import Callable, Iterator

import lmdb

from vllm_plugin.store.contract import Erased, Page, Quarantine
from vllm_plugin.store.entries import session_key
from vllm_plugin.store.seen import Seen
from vllm_plugin.store.tables import STEP_BYTES, STEP_PAGES, Tables, Transaction

ROOM_TRIES = 4
PINNED_S, POLL_S = 0.5, 0.01  # that a put waits for readers of what was freed
STEPS = 8  # a store has room for so many steps at least


class Writes:
    """Jobs; each is some transactions."""

    def __init__(self, tables: Tables, seen: Seen, clock: Callable[[], float], retention_s: float) -> None:
        self._tables, self._seen, self._clock, self._retention_s = tables, seen, clock, retention_s

    def put(self, pages: list[Page]) -> bool:
        """Write pages; whether all are there."""
        there = 0
        for step in self._steps(pages):
            try:
                done = self._put_step(step)
            except lmdb.MapFullError:  # not even for making room: readers keep all that was freed
                done = None
            self._seen.count("shed", len(step) if done is None else 0)
            there += done or 0
        return there == len(pages)

    def moved(self, session: str, generation: int) -> None:
        """A session came to this generation."""
        with self._tables.writing() as txn:
            self._tables.may_write(txn, session, generation, self._clock())

    def note(self, keys: list[bytes], session: str, generation: int) -> None:
        """A session uses pages."""
        with self._tables.writing() as txn:
            may = self._tables.may_write(txn, session, generation, self._clock())
            there = [key for key in keys if self._tables.entry(txn, key)] if may else []
            if there:
                self._tables.note(txn, there, session, self._clock())

    def quarantine(self, key: bytes, digest: bytes) -> Quarantine:
        """Remove one version of a page."""
        with self._tables.writing() as txn:
            entry = self._tables.entry(txn, key)
            if entry is None or entry.manifest.digest != digest:
                return Quarantine.GONE
            self._tables.unlist(txn, key)
        self._seen.count("quarantined", 1)
        self._tables.clear_all()
        return Quarantine.REMOVED

    def drop_damaged(self, key: bytes) -> None:
        """Remove an entry that says nothing true, or whose payload is not there."""
        with self._tables.writing() as txn:
            entry = self._tables.entry(txn, key)  # it may have been written anew meanwhile
            if txn.get(key, None, self._tables.manifests) is None:
                return
            if entry and self._tables.payload(txn, entry) is not None:
                return
            self._tables.unlist(txn, key)
        self._seen.count("damaged", 1)
        self._tables.clear_all()

    def sweep(self, keep: bytes) -> Erased:
        """Remove what is old and nobody's; see `PageStore.sweep`."""
        now_s = self._clock()
        kept = self._tables.keep(keep, now_s, self._retention_s)
        with self._tables.reading() as txn:
            strangers = self._tables.strangers(txn, kept, now_s - self._retention_s)
        swept = self._tables.remove(strangers)
        self._seen.count("swept", swept.pages)
        self._tables.forget_moved(now_s)
        return swept + self.forget()

    def forget(self) -> Erased:
        """Remove what nobody used for the retention."""
        gone = self._tables.forget(self._clock() - self._retention_s)
        self._seen.count("evicted", gone.pages)
        return gone

    def _put_step(self, pages: list[Page]) -> int | None:
        """In one transaction, after making room where there is none. How many are there then: all, but for those of
        sessions that had moved. None where there is no room to be made.
        """
        tables, own = self._tables, {session_key(page.manifest.session) for page in pages}
        pinned_until_s = time.monotonic() + PINNED_S
        missing_bytes = tries = 0
        while tries < ROOM_TRIES and missing_bytes <= tables.limit_bytes:
            try:
                with tables.writing() as txn:
                    let_in = self._let_in(txn, pages)
                    missing_bytes = tables.missing_bytes(txn, let_in)
                    if tables.used_bytes(txn) + missing_bytes <= tables.limit_bytes:
                        put, known = tables.add(txn, let_in, self._clock())
                        self._seen.count("put", put)
                        self._seen.count("known", known)
                        self._seen.count("fenced", len(pages) - len(let_in))
                        return len(let_in)
            except lmdb.MapFullError:  # no room in one piece
                if tables.pinned():
                    if not self._unpinned(pinned_until_s):
                        return None  # evicting more would free as little
                    tables.turn()
                    continue
            if missing_bytes <= tables.limit_bytes:
                gone = tables.make_room(missing_bytes + tables.slack_bytes, own)
                self._seen.count("evicted", gone.pages)
                tries = tries + 1 if gone.pages else ROOM_TRIES
        return None

    def _let_in(self, txn: Transaction, pages: list[Page]) -> list[Page]:
        """Those whose sessions had not moved to a higher generation."""
        now_s = self._clock()
        wanted = dict.fromkeys((page.manifest.session, page.manifest.generation) for page in pages)
        may = {one for one in wanted if self._tables.may_write(txn, *one, now_s)}
        return [page for page in pages if (page.manifest.session, page.manifest.generation) in may]

    def _unpinned(self, until_s: float) -> bool:
        """Wait for readers of what was freed, without writing: each transaction would take some of what is left."""
        while self._tables.pinned():
            if time.monotonic() > until_s:
                return False
            time.sleep(POLL_S)
        return time.monotonic() <= until_s

    def _steps(self, pages: list[Page]) -> Iterator[list[Page]]:
        """As many pages at once as one transaction may write."""
        bytes_max = min(STEP_BYTES, self._tables.limit_bytes // STEPS)
        step: list[Page] = []
        size = 0
        for page in pages:
            if step and (size + page.manifest.page_bytes > bytes_max or len(step) == STEP_PAGES):
                yield step
                step, size = [], 0
            step.append(page)
            size += page.manifest.page_bytes
        if step:
            yield step
