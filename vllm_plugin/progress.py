"""How far a worker is with what it gave to its page store, as metrics and in the status. Pure."""

from collections.abc import Callable, Iterator
from typing import Any

# Of `vllm_plugin.store.Writing`, and under which name it is counted.
COUNTED = {
    "put": "pages_saved", "known": "pages_deduplicated", "shed": "pages_shed", "lost": "pages_lost",
    "fenced": "pages_fenced", "failed": "store_failures",
}  # fmt: skip
QUEUED, LAG = "store_queued_pages", "store_lag_seconds"


class Progress:
    """writing: of the store. It waits for nobody."""

    def __init__(self, writing: Callable[[], Any]) -> None:
        self._writing = writing
        self._before = dict.fromkeys(COUNTED, 0)

    def counts(self) -> Iterator[tuple[str, int]]:
        """What was counted since the last time, by name."""
        now = self._writing()
        for field, name in COUNTED.items():
            most = max(self._before[field], getattr(now, field))  # a metric that goes down ends vLLM's API server
            yield name, most - self._before[field]
            self._before[field] = most

    def states(self) -> dict[str, float]:
        """How many pages wait to be written, and how long the oldest of them has, in seconds."""
        now = self._writing()
        return {QUEUED: now.queued_pages, LAG: now.lag_s}
