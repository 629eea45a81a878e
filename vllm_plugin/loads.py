"""Loads: pages that requests wait for, on their way from a store to their blocks.

A thread fetches them, a slice of each request by turns. Each step puts what was fetched into its blocks and looks at it
there, for as long as running streams can bear. So a slow store keeps waiting who loads from it, and nobody else; and of
many who load at once nobody waits for all that another one needs.

Behind a page that is not there, or not right, the rest of its request is of no use, and is computed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from vllm_plugin import logs
from vllm_plugin.exchange import Arrived, Fetched
from vllm_plugin.page import Load, Page
from vllm_plugin.whose import Whose

SLICE_BYTES = 16 * 2**20  # that are fetched, and placed, at once; one page at least
FETCHED_BYTES_MAX = 64 * 2**20  # that wait to be placed, and one slice
LOAD_S_MAX = 8.0  # that a request waits, and a fetched page at most: less than a store lets it be looked at
SHARE, PLACE_S_MAX = 0.25, 0.02  # of a step's time, and in all, that placing may take, behind its first slice
ALONE_S_MAX = 0.05  # the same in a step that computes nothing
FETCH_WAIT_S = 0.002  # that such a step waits for something to place

log = logs.logger("loads")


class Exchanging(Protocol):
    """What exchange.py does."""

    def fetch(self, pages: Sequence[Page]) -> Fetched: ...
    def place(self, fetched: Fetched) -> list[Arrived]: ...
    def put_aside(self, page: Page, said: bytes) -> None: ...
    def used(self, pages: Sequence[Page], whose: Whose) -> None: ...


class _Loading:
    """One request's. wanted: what is not fetched; there: what is in its place. aside: bad, and not put aside yet."""

    def __init__(self, load: Load, due_s: float) -> None:
        self.load, self.due_s = load, due_s
        self.wanted = deque(load.pages)
        self.there: list[Page] = []
        self.aside: tuple[Page, bytes] | None = None
        self.ended = False


class Loads:
    """Of one worker. page_bytes: of a page. Everything but the thread's part is called between two forward passes."""

    def __init__(
        self, exchange: Exchanging, page_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._exchange, self._clock = exchange, clock
        self._slice = max(1, SLICE_BYTES // page_bytes)
        self._fetched_max = max(1, FETCHED_BYTES_MAX // page_bytes)
        self._of: dict[str, _Loading] = {}
        self._turns: deque[_Loading] = deque()
        self._aside: deque[_Loading] = deque()
        self._fetched: deque[tuple[_Loading, Fetched]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._brought: set[str] = set()
        self._not_brought: set[int] = set()
        self._missed = 0
        threading.Thread(target=self._run, name="holdfast-loads", daemon=True).start()

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._of)

    def add(self, load: Load) -> None:
        """A request waits for these."""
        loading = self._of[load.request_id] = _Loading(load, self._clock() + LOAD_S_MAX)
        with self._changed:
            self._turns.append(loading)
            self._changed.notify_all()

    def stop(self, request_id: str) -> None:
        """Nobody waits for it any more. It ends as one whose last pages were not there."""
        if request_id in self._of:
            self._end(self._of[request_id])

    def stop_all(self) -> None:
        """All that was to be brought, or has been for those who wait still, is of another model."""
        for loading in self._of.values():
            loading.there.clear()
            self._end(loading)

    def place(self, *, computes: bool, step_s: float) -> Iterator[Arrived]:
        """Put what was fetched into its blocks; what each of them is there.

        computes: whether the step computes tokens, which wait for this. step_s: how long the last one took.
        """
        self._end_late()
        until_s = self._clock() + (min(SHARE * step_s, PLACE_S_MAX) if computes else ALONE_S_MAX)
        if not computes:
            with self._changed:
                self._changed.wait_for(lambda: self._fetched, FETCH_WAIT_S)
        while taken := self._taken():
            loading, fetched = taken
            for arrived, said in zip(self._exchange.place(fetched), fetched.said, strict=True):
                yield arrived
                if arrived.kind is not None:
                    loading.aside = None if said is None else (arrived.page, said)
                    self._end(loading)
                    break
                loading.there.append(arrived.page)
            if self._clock() >= until_s:
                break

    def over(self) -> None:
        """See who waits no more: for `brought` and `not_brought`."""
        self._end_late()
        for request_id, loading in list(self._of.items()):
            left = len(loading.load.pages) - len(loading.there)
            if (left and not loading.ended) or loading.aside is not None:
                continue
            del self._of[request_id]
            there = set(loading.there)
            self._brought.add(request_id)
            self._not_brought |= {page.block for page in loading.load.pages if page not in there}
            self._missed += left
            self._exchange.used(loading.there, loading.load.whose)

    def brought(self) -> set[str]:
        """The requests that wait no more, for better or worse; once."""
        brought, self._brought = self._brought, set()
        return brought

    def not_brought(self) -> set[int]:
        """The blocks that do not hold what was to be loaded; once."""
        blocks, self._not_brought = self._not_brought, set()
        return blocks

    def missed(self) -> int:
        """How many pages these were; once."""
        missed, self._missed = self._missed, 0
        return missed

    def close(self) -> None:
        """Nothing is fetched any more, nor looked at; what is being fetched ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.stop_all()

    def _end_late(self) -> None:
        for loading in self._of.values():
            if self._clock() > loading.due_s:
                self._end(loading)

    def _end(self, loading: _Loading) -> None:
        with self._changed:
            if loading.ended:
                return
            loading.ended = True
            if loading.aside is not None:
                self._aside.append(loading)
            dropped = [fetched for other, fetched in self._fetched if other is loading]
            self._fetched = deque(one for one in self._fetched if one[0] is not loading)
            self._changed.notify_all()
        for fetched in dropped:
            fetched.close()

    def _taken(self) -> tuple[_Loading, Fetched] | None:
        with self._changed:
            self._changed.notify_all()
            return self._fetched.popleft() if self._fetched else None

    # ---- the thread's

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._aside or (self._turns and self._has_room()))
                if self._closed:
                    return
                bad = self._aside.popleft() if self._aside else None
                loading = self._turns.popleft() if bad is None else bad
            if bad is not None:
                self._put_aside(bad)
                continue
            pages = [loading.wanted.popleft() for _ in range(min(self._slice, len(loading.wanted)))]
            if loading.ended:
                continue
            fetched = self._fetch(pages)
            with self._changed:
                late = loading.ended or self._closed
                if not late:
                    self._fetched.append((loading, fetched))
                    self._turns.extend([loading] if loading.wanted else [])
                self._changed.notify_all()
            if late:
                fetched.close()

    def _fetch(self, pages: Sequence[Page]) -> Fetched:
        """A store that says what no store may say has nothing; the thread goes on, for others wait for it too."""
        try:
            return self._exchange.fetch(pages)
        except Exception as error:
            log.error("holdfast.fetch_failed", error=type(error).__name__, pages=len(pages))
            return Fetched(pages, [None] * len(pages), [b""] * len(pages), lambda: None)

    def _put_aside(self, bad: _Loading) -> None:
        assert bad.aside is not None
        try:
            self._exchange.put_aside(*bad.aside)
        except Exception as error:
            log.error("holdfast.put_aside_failed", error=type(error).__name__)
        bad.aside = None  # its request waits for that

    def _has_room(self) -> bool:
        return sum(len(fetched.pages) for _, fetched in self._fetched) < self._fetched_max
