"""The one thread of a process that writes: jobs in order, what waits bounded in bytes."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

Job = tuple[Callable[[], Any], int, "Future[Any]"]  # what to do, what it holds in memory in bytes, its answer
JOB_BYTES = 4096  # that a job counts for besides, so that jobs without pages are bounded too


class Writer:
    """Runs jobs one by one, on a thread of its own. Whoever gives one waits as long as they like, or not at all.

    queue_bytes: how much may wait. idle: called between jobs, and at least once in idle_s.
    """

    def __init__(self, queue_bytes: int, idle: Callable[[], None], idle_s: float) -> None:
        self._queue_bytes, self._idle, self._idle_s = queue_bytes, idle, idle_s
        self._jobs: deque[Job] = deque()
        self._waiting_bytes = 0
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="holdfast-pages", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """What waits, or is being written, in bytes."""
        return self._waiting_bytes

    def submit(self, job: Callable[[], T], cost_bytes: int = 0, *, urgent: bool = False) -> "Future[T] | None":
        """Have a job done; None where too much waits already, or after the end.

        urgent: before all others, and however much waits. The caller sees to it that there are not many of these.
        """
        cost_bytes += JOB_BYTES
        answer: Future[T] = Future()
        with self._changed:
            full = self._waiting_bytes > 0 and self._waiting_bytes + cost_bytes > self._queue_bytes
            if self._ending or (full and not urgent):
                return None
            self._waiting_bytes += cost_bytes
            (self._jobs.appendleft if urgent else self._jobs.append)((job, cost_bytes, answer))
            self._changed.notify()
        return answer

    def close(self, within_s: float) -> bool:
        """End after what waits, or without it after within_s. False where a job does not end: the thread is left."""
        deadline_s = time.monotonic() + within_s
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(within_s)
        with self._changed:
            left = list(self._jobs)
            self._jobs.clear()
        for _, _, answer in left:
            answer.cancel()
        self._thread.join(max(0.0, deadline_s - time.monotonic()) if not left else min(within_s, 0.1))
        return not self._thread.is_alive()

    def _run(self) -> None:
        idle_at_s = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._ending, max(0.0, idle_at_s - time.monotonic()))
                job = self._jobs.popleft() if self._jobs else None
                if job is None and self._ending:
                    return
            if job:
                self._do(*job)
                del job  # its pages are not kept until the next one comes
            if time.monotonic() >= idle_at_s:
                self._guarded(self._idle)
                idle_at_s = time.monotonic() + self._idle_s

    def _do(self, job: Callable[[], Any], cost_bytes: int, answer: "Future[Any]") -> None:
        try:
            if answer.set_running_or_notify_cancel():
                answer.set_result(job())
        except Exception as error:
            answer.set_exception(error)
        with self._changed:
            self._waiting_bytes -= cost_bytes

    @staticmethod
    def _guarded(what: Callable[[], None]) -> None:
        try:
            what()
        except Exception:
            log.exception("the page store's housekeeping failed")
