"""Several threads at one piece of work, for as long as that takes: for compiled code that others may run beside."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS_MAX = 4  # memory is what is waited for: more of them bring little


def each(work: Callable[[T], R], items: Sequence[T], threads: int = THREADS_MAX) -> list[R]:
    """What becomes of each, in order. Raises what one of them raised, when those begun are over; no thread is left."""
    cores = _cores()
    threads = min(threads, len(items), len(cores))
    if threads <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, "holdfast-crew", lambda: os.sched_setaffinity(0, cores)) as crew:
        return list(crew.map(work, items))


def _cores() -> set[int]:
    """All that this process was given. vLLM on the CPU binds each of its threads to one, and new ones inherit that."""
    return {core for thread in Path("/proc/self/task").iterdir() for core in _of(int(thread.name))}


def _of(thread: int) -> set[int]:
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:  # it is over
        return set()
