"""When running requests must end: after the time that each may take, or all of them now."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from guards.refusal import Ending


class Deadlines:
    """The deadlines of all running requests. Each has the same time, so they end in order, and one timer serves all.

    total_s: what one request may take, all its legs together.
    """

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._running: dict[Deadline, None] = {}  # the first to end first
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def one(self) -> "Deadline":
        """A block that ends in time. Raises TimeoutError when it did not by itself; `verdict` then says why."""
        return Deadline(self._began, self._running.pop)

    def stop(self) -> None:
        """End every request, those that run and those to come: the gateway stops."""
        self._stopped = True
        for one in self._running:
            one.expire()

    def verdict(self) -> tuple[Ending, str]:
        """How a request ended whose time is over, and what its client is told."""
        if self._stopped:
            return Ending.STOPPED, "The gateway is stopping, and this request took longer than it may wait."
        return Ending.TIMEOUT, f"This request took longer than {self._total_s:g} s, the limit here."

    def _began(self, one: "Deadline", now_s: float) -> None:
        one.ends_at = now_s + self._total_s
        self._running[one] = None
        if self._stopped:
            one.expire()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(one.ends_at, self._look)

    def _look(self) -> None:
        """End those whose time is over, and look again when the next one's is."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for one in self._running:
            if one.ends_at > loop.time():
                self._timer = loop.call_at(one.ends_at, self._look)
                return
            one.expire()


class Deadline:
    """A block, as of `asyncio.timeout`, whose time somebody else keeps."""

    __slots__ = ("_began", "_cancelling", "_left", "_task", "ends_at", "expired")

    def __init__(self, began: Callable[["Deadline", float], None], left: Callable[["Deadline"], None]) -> None:
        self._began, self._left = began, left
        self.expired = False
        self.ends_at = 0.0

    def expire(self) -> None:
        """Its time is over: whatever is awaited in it is cancelled."""
        if not self.expired:
            self.expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._began(self, asyncio.get_running_loop().time())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left(self)
        # Where somebody else has cancelled the task as well, that goes on.
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
