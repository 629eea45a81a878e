"""When to look whether legs are silent: one timer for all of them."""

import asyncio
from math import inf
from typing import Protocol

LOOK_EVERY_S = 0.02  # at the soonest; a timer of its own for each leg would wake the process for each


class Silent(Protocol):
    """What may be silent. Times by the loop's clock, in seconds."""

    def look(self, now_s: float) -> float:
        """See whether it is silent now; answer when to look again, `inf` for never."""

    def fault(self, error: Exception) -> None:
        """A bug of ours was met."""


class Silences:
    """Looks at all legs when the first of them may be late, which in a healthy fleet is a few times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._legs: dict[Silent, None] = {}  # in order, lest anything depend on where they lie in memory
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = inf

    def add(self, leg: Silent, due_s: float) -> None:
        """Look at a leg from now on, at that time first."""
        self._legs[leg] = None
        self.expect(due_s)

    def expect(self, due_s: float) -> None:
        """A leg may be late at that time, if that is sooner than anybody would look."""
        if due_s < self._due_s:
            self._stop()
            self._due_s = due_s
            self._timer = self._loop.call_later(max(0.0, due_s - self._loop.time()), self._look)

    def forget(self, leg: Silent) -> None:
        """Look at it no more."""
        self._legs.pop(leg, None)
        if not self._legs:
            self._stop()

    def _look(self) -> None:
        self._timer, self._due_s = None, inf
        now_s = self._loop.time()
        due_s = inf
        for leg in list(self._legs):
            try:
                due_s = min(due_s, leg.look(now_s))
            except Exception as error:  # must not keep the others from being looked at
                leg.fault(error)
        if due_s < inf:
            self.expect(max(due_s, now_s + LOOK_EVERY_S))

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due_s = None, inf
