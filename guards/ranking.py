"""A priority queue from which anything can be taken, not only the first. Pure."""

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", float, tuple[float, float])

SLACK = 16  # entries of what was taken out that are kept, beside as many as there are live ones


class Ranking(Generic[Item, Key]):
    """Items, each with a key; the least key first, and of equal ones the one that was ranked first.

    Taking one out leaves its entry in the heap, marked by being no longer the item's own; when these are the most, the
    heap is made anew. So every step costs O(log n) in the long run, and what was taken out is soon let go of; at once
    where nothing else is in.
    """

    __slots__ = ("_entries", "_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Item]] = []
        self._entries: dict[Item, tuple[Key, int, Item]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def rank(self, item: Item, key: Key) -> None:
        """Put an item in, or elsewhere if it is in already."""
        self._number += 1
        entry = self._entries[item] = (key, self._number, item)
        heappush(self._heap, entry)
        self._tidy()

    def discard(self, item: Item) -> bool:
        """Take an item out; whether it was in."""
        found = self._entries.pop(item, None) is not None
        if found:
            self._tidy()
        return found

    def key(self, item: Item) -> Key:
        """What an item is ranked by."""
        return self._entries[item][0]

    def first(self) -> Item | None:
        """The item with the least key; None where there is no item."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is entry:
                return entry[2]
            heappop(heap)
        return None

    def pop(self) -> Item | None:
        """The same, taken out."""
        found = self.first()
        if found is not None:
            self.discard(found)
        return found

    def _tidy(self) -> None:
        if not self._entries:
            self._heap.clear()
        elif len(self._heap) > 2 * len(self._entries) + SLACK:
            self._heap = list(self._entries.values())
            heapify(self._heap)
