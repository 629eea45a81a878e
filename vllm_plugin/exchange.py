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
from contextlib import ExitStack
from typing import Any, NamedTuple

from vllm_plugin import logs
from vllm_plugin.crew import Crew
from vllm_plugin.digest import DIGEST_BYTES
from vllm_plugin.page import Kind, Page
from vllm_plugin.whose import NOBODY, Whose

log = logs.logger("exchange")

SWEEP_EVERY_S = 60.0
SHARE_BYTES = 2**20  # of pages, at least: what another thread is worth
SAVED_MAX = 262_144  # pages of which it is known when they were stored, the latest; some 60 MB


def this_minute() -> str:
    """A session for pages of nobody in particular: what was stored, or used, in the same minute (UTC)."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime())


class Arrived(NamedTuple):
    """digest: of the page in its place. kind: what is wrong with it, or None."""

    page: Page
    digest: bytes
    kind: Kind | None


class Fetched:
    """Pages as the store has them, until somebody says `close`. said: the digests in their manifests, None where the
    store has no page of this size. payloads: b"" where it has none.
    """

    def __init__(
        self, pages: Sequence[Page], said: list[bytes | None], payloads: list[Any], over: Callable[[], None]
    ) -> None:
        self.pages, self.said, self.payloads, self._over = pages, said, payloads, over

    def close(self) -> None:
        """Nobody looks at a payload any more. Once."""
        self.payloads.clear()
        self._over()


class Exchange:
    """store: of `vllm_plugin.store`, or anything with its contract; manifest, stored: its two values, `Manifest` and
    `Page`. pages: the group. write: puts pages' bytes into blocks. digest: of some pages, in their places. key: of a
    page's chain. sweep_every_s: see `sweep`.

    threads: that may write and digest at once, as `crew` has them.

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
        write: Callable[[Sequence[int], Sequence[bytes | memoryview]], None],
        digest: Callable[[Sequence[Page]], list[bytes]],
        key: Callable[[bytes], bytes],
        block_tokens: int,
        session: Callable[[], str] = this_minute,
        sweep_every_s: float = SWEEP_EVERY_S,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._manifest, self._stored = store, manifest, stored
        self._pages, self._write, self._digest, self._key = pages, write, digest, key
        self._block_tokens, self._session = block_tokens, session
        self._sweep_every_s, self._clock = sweep_every_s, clock
        self._crew, self._share_min = Crew(threads), max(1, SHARE_BYTES // pages.page_bytes)
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
        aside = self._store.quarantine(self._key(page.chain), digest, 0)
        log.warning("holdfast.stored_page_withdrawn", position=page.position, put_aside=aside)

    def sweep(self, model: bytes) -> None:
        """When it is time: keep this model's pages, remove what nobody uses, of other models too. Does not wait."""
        now_s = self._clock()
        if now_s - self._swept_s >= self._sweep_every_s:
            self._swept_s = now_s
            self._store.sweep(model, 0)

    def fetch(self, pages: Sequence[Page]) -> Fetched:
        """What the store has of these pages. On any thread; takes as long as the store does."""
        with ExitStack() as reading:
            found = reading.enter_context(self._store.read([self._key(page.chain) for page in pages]))
            payloads = [one.payload if one is not None else b"" for one in found]
            said = [one.manifest.digest if one is not None and self._fits(one.payload) else None for one in found]
            return Fetched(pages, said, payloads, reading.pop_all().close)

    def place(self, fetched: Fetched) -> list[Arrived]:
        """Bring pages to their blocks, and look at them there."""
        now = self._written(fetched.pages, fetched.payloads)
        fetched.close()
        arrived = []
        for page, said, is_now in zip(fetched.pages, fetched.said, now, strict=True):
            kind = Kind.ABSENT if said is None else None if said == is_now else Kind.CHANGED
            arrived.append(Arrived(page, is_now, kind))
        return arrived

    def load(self, pages: Sequence[Page], whose: Whose = NOBODY) -> list[Arrived]:
        """All of it at once, where nobody else waits: what is there is placed, and put aside if it is bad."""
        fetched = self.fetch(pages)
        arrived = self.place(fetched)
        for one, said in zip(arrived, fetched.said, strict=True):
            if one.kind is not None and said is not None:
                self.put_aside(one.page, said)
        self.used([one.page for one in arrived if one.kind is None], whose)
        return arrived

    def put_aside(self, page: Page, said: bytes) -> None:
        """It is not what its manifest says. Else it would be loaded again, for ever."""
        assert len(said) == DIGEST_BYTES
        aside = self._store.quarantine(self._key(page.chain), said)
        log.error("holdfast.stored_page_corrupt", position=page.position, put_aside=aside)

    def used(self, pages: Sequence[Page], whose: Whose) -> None:
        """These were brought, and are right."""
        if pages:
            keys = [self._key(page.chain) for page in pages]
            self._store.used_soon(keys, whose.session or self._session(), whose.generation)

    def _written(self, pages: Sequence[Page], payloads: Sequence[bytes | memoryview]) -> list[bytes]:
        """The digests of what lies in the blocks, after those payloads that fit were written there.

        Each thread has one share, so that little is done per page. Then nobody looks at a payload any more.
        """
        share = max(self._share_min, -(-len(pages) // self._crew.threads))

        def some(first: int) -> list[bytes]:
            those = pages[first : first + share]
            came = zip(those, payloads[first : first + len(those)], strict=True)
            fit = [(page.block, payload) for page, payload in came if self._fits(payload)]
            self._write([block for block, _ in fit], [payload for _, payload in fit])
            return self._digest(those)

        done = self._crew.each(some, range(0, len(pages), share))
        return [digest for many in done for digest in many]

    def _fits(self, payload: bytes | memoryview) -> bool:
        return len(payload) == int(self._pages.page_bytes)

    def _quarantine(self, versions: Sequence[tuple[bytes, bytes]]) -> None:
        for key, digest in versions:
            self._store.quarantine(key, digest)
