"""What a store was given to write and has not written yet, in front of its one writer."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotInTime
from typing import TypeVar

from vllm_plugin.store.contract import DIGEST_BYTES, KEY_BYTES_MAX, Erased, Page, StoreBusy, Writing
from vllm_plugin.store.seen import Seen
from vllm_plugin.store.writer import Writer

T = TypeVar("T")


class Queue:
    """Pages that wait, and answers that are waited for.

    put: writes pages, on the writer's thread; whether all are there then. told: errors that whoever raises them has
    counted already. name: of the store, for whom it may concern.
    """

    def __init__(
        self,
        name: str,
        writer: Writer,
        seen: Seen,
        put: Callable[[list[Page]], bool],
        told: tuple[type[Exception], ...] = (),
    ) -> None:
        self._name, self._writer, self._seen, self._put = name, writer, seen, put
        self._told: tuple[type[BaseException], ...] = (NotInTime, CancelledError, *told)
        self._waiting: dict[int, list[Page]] = {}  # what was not begun yet, by its `id`
        self._given: dict[int, tuple[float, int]] = {}  # when what is not over came, oldest first; how many pages
        self._waits = threading.Lock()

    def put(self, pages: Sequence[Page]) -> "Future[bool] | None":
        """Have them written; None where too much waits already. What is not written is counted as shed."""
        copied = list(pages)
        for page in copied:
            assert 0 < len(page.key) <= KEY_BYTES_MAX, "a key of 1 to 255 bytes"
            assert len(page.manifest.digest) == DIGEST_BYTES, "a digest of 16 bytes"
            assert memoryview(page.payload).nbytes == page.manifest.page_bytes, "as many bytes as the manifest says"
        with self._waits:
            self._waiting[id(copied)] = copied
            self._given[id(copied)] = time.monotonic(), len(copied)
        cost_bytes = sum(page.manifest.page_bytes for page in copied)
        answer = self._writer.submit(lambda: self._put(self._begun(copied)), cost_bytes)
        if answer is None:
            self._seen.count("turned_away", len(copied))
            self._over(copied, shed=True)
            return None
        answer.add_done_callback(lambda done: self._over(copied, shed=done.cancelled() or bool(done.exception())))
        return answer

    def do(self, job: Callable[[], None], cost_bytes: int = 0) -> bool:
        """Have something done; False where too much waits already. What fails is counted."""
        answer = self._writer.submit(job, cost_bytes)
        if answer is None:
            return False
        answer.add_done_callback(self._told_of)
        return True

    def writing(self) -> Writing:
        """See `PageStore.writing`."""
        with self._waits:
            given = list(self._given.values())
        numbers = self._seen.numbers()
        lag_s = time.monotonic() - given[0][0] if given else 0.0
        counted = {name: numbers.get(name, 0) for name in ("put", "known", "fenced", "failed")}
        shed = numbers.get("turned_away", 0)
        lost = max(0, numbers.get("shed", 0) - shed)  # what is turned away is counted a moment before
        return Writing(sum(pages for _, pages in given), lag_s, shed=shed, lost=lost, **counted)

    def drop(self, key: bytes, digest: bytes) -> None:
        """This version is not written any more, should it wait: its removal goes before what waits."""
        with self._waits:
            for pages in self._waiting.values():
                pages[:] = [page for page in pages if (page.key, page.manifest.digest) != (key, digest)]

    def awaited(self, answer: "Future[T] | None", within_s: float) -> T | None:
        """A job's answer; None where there is none in time, or at all."""
        if answer is None:
            return None
        try:
            return answer.result(within_s)
        except self._told:
            return None
        except Exception as error:
            self._seen.failed(error)
            return None

    def erased(self, job: Callable[[], Erased], within_s: float, where: str = "") -> Erased:
        """The answer of a job that must be done. where: it was to be. Raises StoreBusy."""
        gone = self.awaited(self._writer.submit(job), within_s)
        if gone is None:
            why = self._seen.failure or "others write"
            raise StoreBusy(f"{self._name}: not done{where} within {within_s:g} s: {why}")
        return gone

    def _over(self, pages: list[Page], *, shed: bool) -> None:
        """They are written, or will not be."""
        self._seen.count("shed", len(self._begun(pages)) if shed else 0)
        with self._waits:
            self._given.pop(id(pages), None)

    def _told_of(self, done: "Future[None]") -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, Exception) and not isinstance(error, self._told):
            self._seen.failed(error)

    def _begun(self, pages: list[Page]) -> list[Page]:
        """It waits no more."""
        with self._waits:
            self._waiting.pop(id(pages), None)
            return pages
