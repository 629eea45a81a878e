"""How much one server may hold at once, in tokens: learnt from whether it can keep up. Pure.

Not in requests, since one may be a thousand times another; and not from durations, which grow with the answers. What
fills a server is its KV cache, so what counts is tokens in it: prompt and output so far, and before there is any output
what is expected. More is tried while this limit is all that keeps requests waiting (additive increase); less, when the
server itself lets requests wait or throws some out of its cache to be computed again (multiplicative decrease).

A decrease begins at what the server really works on: a limit that nothing reaches, or that let a queue grow there,
would take long to fall to where it matters. Who has next to nothing there does not decrease: others are at fault.
"""

from dataclasses import dataclass

LEARN_S_MAX = 5.0  # of growth at one look, however long the last one is ago


@dataclass(frozen=True, slots=True)
class Aimd:
    """How a limit moves. Tokens, and seconds.

    floor, ceiling: within which it stays. start: where it begins: high, since that is corrected within seconds, and a
        limit that is too low slows all down for minutes.
    growth_per_s: tokens more per second while it is what binds. shrink: times so much when the server cannot keep up.
    waits_s: for how long requests must wait at the server. rest_s: between two decreases, so that the first can help.
    """

    floor: int = 4_096
    ceiling: int = 4_194_304
    start: int = 4_194_304
    growth_per_s: float = 1_024.0
    shrink: float = 0.9
    waits_s: float = 2.0
    rest_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.start <= self.ceiling:
            raise ValueError("0 < floor <= start <= ceiling")
        if not 0 < self.shrink < 1 or self.growth_per_s < 0 or self.waits_s < 0 or self.rest_s < 0:
            raise ValueError("0 < shrink < 1, and growth_per_s, waits_s and rest_s are 0 or more")


class TokenLimit:
    """What one server holds of this gateway's, and how much that may be.

    tokens: in flight there; limit: how many may be; bound: since the last look it was in somebody's way.
    """

    __slots__ = ("_aimd", "_looked_s", "_preemptions", "_shrunk_s", "_waits_since_s", "bound", "limit", "tokens")

    def __init__(self, aimd: Aimd) -> None:
        self._aimd = aimd
        self.limit = float(aimd.start)
        self.tokens = 0
        self.bound = False
        self._looked_s: float | None = None
        self._waits_since_s: float | None = None
        self._preemptions: int | None = None
        self._shrunk_s = float("-inf")

    def fits(self, tokens: int) -> bool:
        """Whether so many more may come in; one that is alone always may, however large."""
        if self.tokens + tokens <= self.limit or not self.tokens:
            return True
        self.bound = True
        return False

    def look(self, running: int, waiting: int, preemptions: int, now_s: float) -> None:
        """Learn from what the server says: requests that run and that wait there, and preemptions since it started."""
        thrown_out = self._preemptions is not None and preemptions > self._preemptions
        self._preemptions = preemptions  # fewer than before: it was started anew
        if not waiting:
            self._waits_since_s = None
        elif self._waits_since_s is None:
            self._waits_since_s = now_s
        waits = self._waits_since_s is not None and now_s - self._waits_since_s >= self._aimd.waits_s
        if thrown_out or waits:
            if self.tokens > self._aimd.floor and now_s - self._shrunk_s >= self._aimd.rest_s:
                worked_on = self.tokens * running / max(1, running + waiting)
                self.limit = max(float(self._aimd.floor), self._aimd.shrink * min(self.limit, worked_on))
                self._shrunk_s = now_s
        elif self.bound and not waiting and self._looked_s is not None:
            grown = self._aimd.growth_per_s * min(now_s - self._looked_s, LEARN_S_MAX)
            self.limit = min(float(self._aimd.ceiling), self.limit + grown)
        self._looked_s, self.bound = now_s, False
