"""Totals of corrupt pages that one server tells -> is its memory broken. Pure.

Memory that is well has none: a cosmic ray costs one page in months. Memory that is not well has more of them, so it is
the rate that counts and not the total, which says as much of how long a server has run. A server that is drained has
little left to find, so a quiet time proves nothing: it stays drained until its engine was started anew, or until an
operator says so.
"""

from collections import deque
from typing import NamedTuple

SLICES = 60  # of a window: what is remembered of each is one number


class Plan(NamedTuple):
    """When a server is drained: after more than pages_max corrupt pages within window_s seconds, if drains is set."""

    pages_max: int = 10
    window_s: float = 600.0
    drains: bool = True


class Corruption:
    """What the totals of one server come to.

    drained: why it is to get no new requests; None where nothing speaks against it.
    """

    __slots__ = ("_engines", "_looked_s", "_slices", "_total", "drained", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.drained: str | None = None
        self._slices: deque[list[int]] = deque(maxlen=SLICES + 1)  # [number of the slice, corrupt pages in it]
        self._total: int | None = None
        self._engines, self._looked_s = 0, 0.0

    def note(self, total: int, engines: int, now_s: float) -> None:
        """Take a look's total, over so many engines, since they were started. There are four cases.

        1. The first look: nobody knows how long ago those pages went bad, so it only says where to count from.
        2. Another number of engines than before: the same, for a sum of others is no more and no less.
        3. Less than before: the engines were started anew, and all that was found is of their former memory.
        4. Else there are so many new ones. After a gap that is longer than a window they are thinned to its rate.
        """
        before, gap_s = self._total, now_s - self._looked_s
        same = before is not None and engines == self._engines
        self._total, self._engines, self._looked_s = total, engines, now_s
        if before is None or not same:
            return
        new = total - before
        if new < 0:
            self.forgive()
            new = total
        if gap_s > self.plan.window_s:
            new = int(new * self.plan.window_s / gap_s)
        if new > 0:
            self._add(new, now_s)
            self._judge(now_s)

    def lately(self, now_s: float) -> int:
        """How many pages were found corrupt within the window."""
        oldest = self._slice(now_s) - SLICES
        return sum(pages for number, pages in self._slices if number > oldest)

    def forgive(self) -> None:
        """Forget what was found: it is counted from here."""
        self._slices.clear()
        self.drained = None

    def _add(self, pages: int, now_s: float) -> None:
        number = self._slice(now_s)
        if self._slices and self._slices[-1][0] == number:
            self._slices[-1][1] += pages
        else:
            self._slices.append([number, pages])

    def _judge(self, now_s: float) -> None:
        plan, found = self.plan, self.lately(now_s)
        if plan.drains and self.drained is None and found > plan.pages_max:
            self.drained = f"{found} corrupt pages in {plan.window_s:g} s"

    def _slice(self, now_s: float) -> int:
        return int(now_s // (self.plan.window_s / SLICES))
