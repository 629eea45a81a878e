"""The scrubber's order: which pages to look at after a step. Pure.

The gate covers what a request hits; a request that runs for minutes reads its pages again in every step. So those that
running requests hold come first, and the one that was not looked at for the longest time is first among them.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable
from itertools import islice

PER_STEP_MIN = 1  # so that a request that holds few pages has them all looked at, however short its steps are
LEARNING = 0.2  # how far a new measurement moves what is believed of a page's cost


class Scrubber:
    """Two rings of blocks, held and idle, each from the one seen intact the longest ago to the latest."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, float] = OrderedDict()
        self._idle: OrderedDict[int, float] = OrderedDict()
        self._holders: defaultdict[int, int] = defaultdict(int)
        self._holding: dict[str, list[int]] = {}
        self._page_s = 1e-4

    def hold(self, request_id: str, blocks: Iterable[int]) -> None:
        """It holds these too."""
        blocks = list(blocks)
        self._holding.setdefault(request_id, []).extend(blocks)
        for block in blocks:
            self._holders[block] += 1
            if block in self._idle:
                self._held[block] = self._idle.pop(block)
                self._held.move_to_end(block, last=False)

    def release(self, request_id: str) -> None:
        """It holds nothing any more."""
        for block in self._holding.pop(request_id, ()):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                if block in self._held:
                    self._idle[block] = self._held.pop(block)

    def seen(self, block: int, now_s: float) -> None:
        """It was just sealed, or found intact."""
        ring = self._held if block in self._holders else self._idle
        ring[block] = now_s
        ring.move_to_end(block)

    def forget(self, block: int) -> None:
        """There is nothing to look at any more."""
        self._held.pop(block, None)
        self._idle.pop(block, None)

    def cost(self, pages: int, took_s: float) -> None:
        """So long it took to look at so many."""
        if pages:
            self._page_s += LEARNING * (took_s / pages - self._page_s)

    def pick(self, budget_s: float | None, skip: Iterable[int] = ()) -> list[int]:
        """What to look at. budget_s: for so long, or None for all that are held. skip: were just looked at.

        One page that is held in any case. The idle ones get what is left, one at least while anything of the budget is.
        """
        known = set(skip)
        for_all = len(self._held) if budget_s is None else int(max(0.0, budget_s) / max(self._page_s, 1e-9))
        held = list(islice((block for block in self._held if block not in known), max(PER_STEP_MIN, for_all)))
        least = PER_STEP_MIN if budget_s is None or budget_s > 0 else 0
        left = least if budget_s is None else max(least, for_all - len(held))
        return held + list(islice((block for block in self._idle if block not in known), left))

    def unseen(self, since_s: float, skip: Collection[int] = ()) -> list[int]:
        """All that were not looked at since then, those that are held first."""
        rings = (*self._held.items(), *self._idle.items())
        return [block for block, seen_s in rings if seen_s < since_s and block not in skip]

    def age_s(self, now_s: float) -> float:
        """How long ago the page was seen that was not seen for the longest time: a whole round takes that long."""
        oldest = [next(iter(ring.values())) for ring in (self._held, self._idle) if ring]
        return now_s - min(oldest) if oldest else 0.0
