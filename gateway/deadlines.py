"""When running requests must end: in time, when a key is revoked, a breaker opens, rights to spend lapse, or now."""

import asyncio
from collections.abc import Callable, Sequence, Set
from types import TracebackType
from typing import Self

from guards.budget import Line
from guards.refusal import Ending

Verdict = tuple[Ending, str]
STOPPED: Verdict = (Ending.STOPPED, "The gateway is stopping, and this request took longer than it may wait.")
REVOKED: Verdict = (Ending.REVOKED, "The API key of this request was revoked.")
LAPSED: Verdict = (Ending.BOOKS, "The budget of this request cannot be asked for any more right now.")


class Expired(Exception):
    """A request's time is over. verdict: how it ended, and what its client is told."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(*verdict)
        self.verdict = verdict


class Deadlines:
    """The deadlines of all running requests. Each has the same time, so they end in order, and one timer serves all.

    total_s: what one request may take, all its legs together.
    """

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._running: dict[Deadline, None] = {}  # the first to end first
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._revoked: set[str] = set()  # since the start: one may have been let in a moment before, and begin after

    def one(self, key_id: str, lines: Sequence[Line] = (), whose: object = None) -> "Deadline":
        """A block that ends in time. Raises Expired when it did not by itself.

        lines: the limits it is under, for `lapse`; whose: for `end`.
        """
        return Deadline(key_id, lines, whose, self._began, self._running.pop)

    def end(self, whose: Set[object], verdict: Verdict) -> int:
        """End those requests that run now which are of these; return how many."""
        ended = [one for one in self._running if one.whose in whose and one.verdict is None]
        for one in ended:
            one.expire(verdict)
        return len(ended)

    def stop(self) -> None:
        """End every request, those that run and those to come: the gateway stops."""
        self._stopped = True
        for one in self._running:
            one.expire(STOPPED)

    def revoke(self, key_ids: Set[str]) -> int:
        """End the requests of keys that are no longer good, also those to come; return how many ran."""
        self._revoked |= key_ids
        ended = [one for one in self._running if one.key_id in key_ids and one.verdict is None]
        for one in ended:
            one.expire(REVOKED)
        return len(ended)

    def lapse(self, over: Callable[[Sequence[Line]], bool]) -> int:
        """End the running requests of whose limits nothing more may be spent; return how many those were."""
        ended = [one for one in self._running if one.verdict is None and over(one.lines)]
        for one in ended:
            one.expire(LAPSED)
        return len(ended)

    def _began(self, one: "Deadline", now_s: float) -> None:
        one.ends_at = now_s + self._total_s
        self._running[one] = None
        if self._stopped:
            one.expire(STOPPED)
        elif one.key_id in self._revoked:
            one.expire(REVOKED)
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
            one.expire((Ending.TIMEOUT, f"This request took longer than {self._total_s:g} s, the limit here."))


class Deadline:
    """A block, as of `asyncio.timeout`, whose time somebody else keeps.

    verdict: how the request in it ended, and what its client is told; None while it may go on.
    """

    __slots__ = ("_began", "_cancelling", "_left", "_task", "ends_at", "key_id", "lines", "verdict", "whose")

    def __init__(
        self,
        key_id: str,
        lines: Sequence[Line],
        whose: object,
        began: Callable[["Deadline", float], None],
        left: Callable[["Deadline"], None],
    ) -> None:
        self.key_id, self.lines, self.whose = key_id, lines, whose
        self._began, self._left = began, left
        self.verdict: Verdict | None = None
        self.ends_at = 0.0

    def expire(self, verdict: Verdict) -> None:
        """Its time is over: whatever is awaited in it is cancelled. The first verdict stands."""
        if self.verdict is None:
            self.verdict = verdict
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
        if self.verdict is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise Expired(self.verdict) from error
