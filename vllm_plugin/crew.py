"""Several threads at one piece of work: for compiled code that others may run beside."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS_MAX = 4  # memory is what is waited for: more of them bring little


class Crew:
    """Whoever asks, and some more where there are cores for them. threads: of them all, at most.

    The others stay, until nobody has the crew any more: to begin them takes as long as to copy some megabytes.
    """

    def __init__(self, threads: int = THREADS_MAX) -> None:
        self._threads_max = threads

    @cached_property
    def threads(self) -> int:
        """How many there are at most, with whoever asks."""
        return min(self._threads_max, len(_cores())) if self._threads_max > 1 else 1

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """What becomes of each, in order. Raises what one of them raised, when those begun are over."""
        count = min(self.threads, len(items))
        if count <= 1:
            return [work(item) for item in items]
        left, found = deque(enumerate(items)), dict[int, R]()

        def some() -> None:
            while one := _next(left):
                at, item = one
                try:
                    found[at] = work(item)
                except BaseException:
                    left.clear()
                    raise

        begun = [self._others.submit(some) for _ in range(count - 1)]
        try:
            some()
        finally:
            others = [one for one in begun if not one.cancel()]  # who did not begin yet is not needed
            wait(others)
        for other in others:
            other.result()
        return [found[at] for at in range(len(items))]

    @cached_property
    def _others(self) -> ThreadPoolExecutor:
        """Made when they are needed: all threads of the process are there then."""
        return ThreadPoolExecutor(self.threads - 1, "holdfast-crew", partial(_spread, _cores()))


def _next(left: deque[T]) -> T | None:
    try:
        return left.popleft()
    except IndexError:
        return None


def _spread(cores: set[int]) -> None:
    """Have this thread on all of these cores. Where that is refused it stays where it is: slower, and as right.

    A thread that raises as it begins would break the pool, and every later piece of work with it.
    """
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)


def _cores() -> set[int]:
    """All that this process was given. vLLM on the CPU binds each of its threads to one, and new ones inherit that."""
    return {core for thread in Path("/proc/self/task").iterdir() for core in _of(int(thread.name))}


def _of(thread: int) -> set[int]:
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:  # it is over
        return set()
