"""What a store met in this process, counted."""

import logging
import threading
from collections import Counter

log = logging.getLogger(__name__)


class Seen:
    """What happened in this process, counted. failure: what the store beneath said last, when it said no."""

    def __init__(self, name: str) -> None:
        self.failure = ""
        self._name = name
        self._numbers: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, what: str, number: int) -> None:
        """Of `Stats`."""
        with self._lock:
            self._numbers[what] += number

    def failed(self, error: Exception) -> None:
        """Count a failure; tell the first one."""
        if not self.failure:
            log.warning("pages: %s: %s", self._name, error)
        self.failure = f"{type(error).__name__}: {error}"
        self.count("failed", 1)

    def numbers(self) -> dict[str, int]:
        """All that was counted."""
        with self._lock:
            return dict(self._numbers)
