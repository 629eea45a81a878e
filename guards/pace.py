"""How fast waiting work is taken up, measured while there is some. Pure.

What a request waits for is the work ahead of it; how long that takes is learnt from how long such work took. Time in
which nothing waits says nothing of what servers could do, so it does not count.
"""

from math import exp, log

HALF_S = 10.0  # of busy time, after which what was seen counts half
KNOWN_S, KNOWN_STARTS = 1.0, 5  # of busy time, and starts, before which nothing is said: the first may take long


class Pace:
    """Tokens of work per second. Whoever queues tells it when something begins to wait, starts, and when none waits."""

    __slots__ = ("_at_s", "_busy", "_seconds", "_starts", "_work")

    def __init__(self) -> None:
        self._work = self._seconds = self._at_s = 0.0
        self._busy, self._starts = False, 0

    def note(self, now_s: float, work: int = 0, *, busy: bool) -> None:
        """So much work was taken up now. busy: whether something waits from now on."""
        if self._busy and now_s > self._at_s:
            passed_s = now_s - self._at_s
            faded = exp(-passed_s * log(2.0) / HALF_S)
            self._seconds = self._seconds * faded + passed_s
            self._work *= faded
        self._work += work
        self._starts += work > 0
        self._at_s, self._busy = now_s, busy

    def seconds(self, work: float, now_s: float) -> float | None:
        """How long so much work will take; None while nothing is known. A standstill counts as it lasts."""
        busy_s = self._seconds + (now_s - self._at_s if self._busy else 0.0)
        if busy_s < KNOWN_S or self._starts < KNOWN_STARTS:
            return None
        return work * busy_s / max(self._work, 1.0)
