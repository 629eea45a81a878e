"""Snapshots that are open in this process: counted, and ended where they are open for too long."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vllm_plugin.store.contract import READ_S_MAX
from vllm_plugin.store.tables import Transaction


class Ended(Exception):
    """There are no snapshots any more."""


class Snapshot:
    """txn: of LMDB. lent: its memory is looked at, and nothing is asked of the transaction any more."""

    def __init__(self, txn: Transaction, begun_s: float) -> None:
        self.txn, self.begun_s, self.lent = txn, begun_s, False


class Reads:
    """What reads. A snapshot keeps all that is freed from being reused, so none is open for ever."""

    def __init__(self, begin: Callable[[], Transaction], clock: Callable[[], float] = time.monotonic) -> None:
        self._begin, self._clock = begin, clock
        self._numbers = itertools.count()
        self._open: dict[int, Snapshot | None] = {}  # None: it was ended, and whoever has it looks at the map still
        self._changed = threading.Condition()
        self._ended = False

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One moment of the store. Raises Ended."""
        with self._changed:
            if self._ended:
                raise Ended
            number = next(self._numbers)
            snapshot = Snapshot(self._begin(), self._clock())
            self._open[number] = snapshot
        try:
            yield snapshot
        finally:
            with self._changed:
                if self._open.pop(number):
                    snapshot.txn.abort()
                self._changed.notify_all()

    def end_overdue(self) -> int:
        """End what is lent for longer than READ_S_MAX; how many. Its memory stays where it is, and may change."""
        ended = 0
        with self._changed:
            for number, snapshot in self._open.items():
                if snapshot and snapshot.lent and self._clock() - snapshot.begun_s > READ_S_MAX:
                    snapshot.txn.abort()
                    self._open[number] = None
                    ended += 1
        return ended

    def close(self, within_s: float) -> bool:
        """No more of them; whether all are over."""
        with self._changed:
            self._ended = True
            return self._changed.wait_for(lambda: not self._open, within_s)
