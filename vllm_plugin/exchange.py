"""Exchange of pages between a worker's tensors and a page store: a copy out when one is full, a copy in when asked.

A page that comes in is written to its block, and only then looked at, there: the digest that its manifest says must be
what its header, as the scheduler names it, and what lies in the block now make. So bytes that were right on the way and
arrived wrong are found, and so is a page that was stored as another. Who waits for what, and in what order it comes:
loads.py.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vllm_plugin import logs
from vllm_plugin.digest import DIGEST_BYTES
from vllm_plugin.page import Kind, Load, Page
from vllm_plugin.whose import NOBODY, Whose

log = logs.logger("exchange")

SWEEP_EVERY_S = 60.0
SAVED_MAX = 262_144  # pages of which it is known when they were stored, the latest; some 60 MB


def this_minute() -> str:
    """A session for pages of nobody in particular: what was stored, or used, in the same minute (UTC)."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime())


class Fetched(NamedTuple):
    """A page as the store has it. digest: what its manifest says; None where it has none, or one of another size."""

    page: Page
    digest: bytes | None
    payload: bytes


class Arrived(NamedTuple):
    """digest: of the page in its place. kind: what is wrong with it, or None."""

    page: Page
    digest: bytes
    kind: Kind | None


class Exchange:
    """store: of `vllm_plugin.store`, or anything with its contract; manifest, stored: its two values, `Manifest` and
    `Page`. pages: the group. write: puts a page's bytes into a block. digest: of some pages, in their places. key: of a
    page's chain. sweep_every_s: see `sweep`.

    session: whose pages these are where nobody said so, asked for each time. A store evicts whole sessions, those first
    that were not used for longest, and never for the sake of pages of the same one: one session for everything would
    fill it for good.
    """

    def __init__(
        self,
        store: Any,
        *,
        manifest: Callable[..., Any],
        stored: Callable[..., Any],
        pages: Any,
        write: Callable[[int, bytes], None],
        digest: Callable[[Sequence[Page]], list[bytes]],
        key: Callable[[bytes], bytes],
        block_tokens: int,
        session: Callable[[], str] = this_minute,
        sweep_every_s: float = SWEEP_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._manifest, self._stored = store, manifest, stored
        self._pages, self._write, self._digest, self._key = pages, write, digest, key
        self._block_tokens, self._session = block_tokens, session
        self._sweep_every_s, self._clock = sweep_every_s, clock
        self._swept_s = clock() - sweep_every_s
        self._saved: deque[tuple[float, bytes, bytes]] = deque(maxlen=SAVED_MAX)  # when, key, digest

    def copy(self, page: Page, digest: bytes, whose: Whose = NOBODY) -> Any:
        """A page that was just sealed, as it is stored. whose: where somebody said so."""
        manifest = self._manifest(
            digest, page.chain, page.position, self._block_tokens, self._pages.page_bytes, self._pages.form,
            whose.session or self._session(), time.time(), whose.generation,
        )  # fmt: skip
        return self._stored(self._key(page.chain), manifest, self._pages.bytes(page.block))

    def save(self, copies: Sequence[Any], at_s: float = 0.0) -> None:
        """Keep these, if the store takes them; now it is at_s. Waits for nobody."""
        if copies and self._store.put_soon(copies):
            self._saved.extend((at_s, copy.key, copy.manifest.digest) for copy in copies)

    def take_back(self, since_s: float) -> threading.Thread:
        """What was stored since then may be of other weights than its key says: no engine must find it. It takes a
        while where it is much, so a thread does it, which is returned.
        """
        versions = [(key, digest) for at_s, key, digest in self._saved if at_s >= since_s]
        log.warning("holdfast.stored_pages_taken_back", pages=len(versions), all=len(versions) < SAVED_MAX)
        self._saved.clear()
        thread = threading.Thread(target=self._quarantine, args=(versions,), name="holdfast-taken-back", daemon=True)
        thread.start()
        return thread

    def withdraw(self, page: Page, digest: bytes) -> None:
        """It should never have been computed: no engine must find it."""
        aside = self._store.quarantine(self._key(page.chain), digest)
        log.warning("holdfast.stored_page_withdrawn", position=page.position, put_aside=aside)

    def sweep(self, model: bytes) -> None:
        """When it is time: keep this model's pages, remove what nobody uses, of other models too. Does not wait."""
        now_s = self._clock()
        if now_s - self._swept_s >= self._sweep_every_s:
            self._swept_s = now_s
            self._store.sweep(model, 0)

    def fetch(self, pages: Sequence[Page]) -> list[Fetched]:
        """Copies of what the store has. On any thread; takes as long as the store does."""
        fetched = []
        with self._store.read([self._key(page.chain) for page in pages]) as found:
            for page, one in zip(pages, found, strict=True):
                if one is not None and len(one.payload) == self._pages.page_bytes:
                    fetched.append(Fetched(page, one.manifest.digest, bytes(one.payload)))
                else:
                    fetched.append(Fetched(page, None, b""))
        return fetched

    def place(self, fetched: Sequence[Fetched]) -> list[Arrived]:
        """Bring pages to their blocks, and look at them there."""
        for one in fetched:
            if one.digest is not None:
                self._write(one.page.block, one.payload)
        arrived = []
        for one, is_now in zip(fetched, self._digest([one.page for one in fetched]), strict=True):
            kind = Kind.ABSENT if one.digest is None else None if one.digest == is_now else Kind.CHANGED
            arrived.append(Arrived(one.page, is_now, kind))
        return arrived

    def put_aside(self, bad: Fetched) -> None:
        """It was not what its manifest says, where it was put. Else it would be loaded again, for ever."""
        assert bad.digest is not None
        assert len(bad.digest) == DIGEST_BYTES
        aside = self._store.quarantine(self._key(bad.page.chain), bad.digest)
        log.error("holdfast.stored_page_corrupt", position=bad.page.position, put_aside=aside)

    def used(self, load: Load, pages: Sequence[Page]) -> None:
        """These of a load were brought, and are right."""
        keys = [self._key(page.chain) for page in pages]
        self._store.used_soon(keys, load.whose.session or self._session(), load.whose.generation)

    def _quarantine(self, versions: Sequence[tuple[bytes, bytes]]) -> None:
        for key, digest in versions:
            self._store.quarantine(key, digest)
