"""The way from the event loop to a writer thread: a bounded queue that is emptied in batches."""

import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items put by one thread and taken by another, in order, many at a time.

    items_max: how many may wait before `put` says no.
    batch_max: how many are handed over together at most.
    linger_s: how long a batch that is not full waits for company, in seconds.
    lonely: whether it waits so long also after a batch of one item.
    idle_s: an empty batch is handed over after this many seconds without an item; None: never.
    """

    def __init__(
        self,
        items_max: int,
        batch_max: int,
        *,
        linger_s: float = 0.0,
        lonely: bool = True,
        idle_s: float | None = None,
    ) -> None:
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._closed = False
        self._items_max = items_max
        self._batch_max = batch_max
        self._linger_s = linger_s
        self._lonely = lonely
        self._company = False
        self._idle_s = idle_s

    def put(self, item: T, *, always: bool = False) -> bool:
        """Leave an item; False when the inbox is full or closed. Never blocks.

        always: also when it is full, for items whose number something else bounds.
        """
        if self._closed or (self._queue.qsize() >= self._items_max and not always):
            return False
        self._queue.put(item)
        return True

    def close(self) -> None:
        """Take no more; what waits is still handed over."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    def batches(self) -> Iterator[list[T]]:
        """Hand over what comes in, for the taking thread, until the inbox is closed and empty."""
        while True:
            batch, last = self._take()
            self._company = len(batch) > 1
            yield batch
            if last:
                return

    def _take(self) -> tuple[list[T], bool]:
        """Wait for one item, then take all that are there, up to a batch; say whether it was the last."""
        batch: list[T] = []
        try:
            item = self._queue.get(timeout=self._idle_s)
            # One sleep rather than a wait for each item: the taking thread wakes once a batch.
            waits = self._linger_s and (self._lonely or self._company)
            if waits and item is not None and self._queue.qsize() < self._batch_max:
                time.sleep(self._linger_s)
            while item is not None:
                batch.append(item)
                if len(batch) == self._batch_max:
                    return batch, False
                item = self._queue.get_nowait()
        except Empty:
            return batch, False
        return batch, True
