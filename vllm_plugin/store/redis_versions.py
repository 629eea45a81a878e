"""Which versions of pages this process does not read any more."""

import threading
from collections import OrderedDict

VERSIONS_MAX = 65_536


class Versions:
    """For each key the oldest stamp that may still be right, and what was found wrong and is not removed yet.

    A version that is older than one that was seen here, or that was removed from here, is not read: whoever can write
    to a server could otherwise put it back. Bounded: of VERSIONS_MAX keys, those of longest ago are forgotten.
    """

    def __init__(self) -> None:
        self._oldest: OrderedDict[bytes, int] = OrderedDict()
        self._denied: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()
        self._lock = threading.Lock()

    def may_be(self, key: bytes, stamp: int) -> bool:
        """Whether a version is not older than what is known of its key."""
        with self._lock:
            return stamp >= self._oldest.get(key, 0)

    def saw(self, key: bytes, stamp: int) -> None:
        """It is there and intact."""
        with self._lock:
            self._oldest[key] = max(stamp, self._oldest.get(key, 0))
            self._oldest.move_to_end(key)
            while len(self._oldest) > VERSIONS_MAX:
                self._oldest.popitem(last=False)

    def over(self, key: bytes, stamp: int) -> None:
        """It was removed, and all before it."""
        self.saw(key, stamp + 1)

    def next(self, key: bytes, now: int) -> int:
        """The stamp of a version that is written now."""
        with self._lock:
            return max(now, self._oldest.get(key, 0))

    def deny(self, key: bytes, digest: bytes) -> None:
        """It was found wrong."""
        with self._lock:
            self._denied[key, digest] = None
            while len(self._denied) > VERSIONS_MAX:
                self._denied.popitem(last=False)

    def denied(self, key: bytes, digest: bytes) -> bool:
        """Whether it was found wrong, and may be there yet."""
        return (key, digest) in self._denied

    def all_denied(self) -> list[tuple[bytes, bytes]]:
        """Those."""
        with self._lock:
            return list(self._denied)

    def removed(self, key: bytes, digest: bytes) -> None:
        """It is nowhere any more."""
        with self._lock:
            self._denied.pop((key, digest), None)
