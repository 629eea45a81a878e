"""The way from the event loop to a writer thread: a bounded queue that is emptied in batches."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items put by one thread and taken by another, in order, many at a time.

    A deque and an event: a queue takes a lock for each item, and wakes whoever waits for it.

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
        self._items: deque[T] = deque()
        self._closed = False
        self._news = threading.Event()
        self._waiting = False  # the taking thread, for the event
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
        if self._closed or (len(self._items) >= self._items_max and not always):
            return False
        self._items.append(item)
        if self._waiting:
            self._waiting = False  # told once, however long it takes to come
            self._news.set()
        return True

    def close(self) -> None:
        """Take no more; what waits is still handed over."""
        self._closed = True
        self._news.set()

    def batches(self) -> Iterator[list[T]]:
        """Hand over what comes in, for the taking thread, until the inbox is closed and empty."""
        while not self._closed or self._items:
            if not self._items:
                self._wait()
            # One sleep rather than a wait for each item: the taking thread wakes once a batch.
            waits = self._linger_s and (self._lonely or self._company)
            if waits and not self._closed and 0 < len(self._items) < self._batch_max:
                time.sleep(self._linger_s)
            items = self._items
            batch = [items.popleft() for _ in range(min(len(items), self._batch_max))]
            self._company = len(batch) > 1
            yield batch

    def _wait(self) -> None:
        """Sleep until there is an item, or for `idle_s`. Who puts one sees the flag, or this sees the item."""
        self._waiting = True
        if not self._items and not self._closed:
            self._news.wait(self._idle_s)
        self._waiting = False
        self._news.clear()
