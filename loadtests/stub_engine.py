"""The stub's engine: the clock by which answers are computed. It can stand still, or be slow, under a living server."""

import asyncio
import time
from collections.abc import Callable


class Task:
    """Something that the engine will do, unless it is cancelled."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def cancel(self) -> None:
        """Do it never."""
        self._act = None

    def do(self) -> None:
        """Do it, once."""
        act, self._act = self._act, None
        if act is not None:
            act()


class Engine:
    """Runs what answers ask for; while it is frozen nothing is done, and afterwards all goes on where it was."""

    def __init__(self) -> None:
        self._slowness = 1.0
        self._begun_s = self._real_s = time.monotonic()  # its time and the real one, when its pace last changed
        self._frozen_at: float | None = None
        self._held: list[Task] = []

    @property
    def frozen(self) -> bool:
        return self._frozen_at is not None

    def time(self) -> float:
        """Seconds of its own: without those in which it was frozen, and fewer while it is slow."""
        real_s = time.monotonic() if self._frozen_at is None else self._frozen_at
        return self._begun_s + (real_s - self._real_s) / self._slowness

    def slow(self, slowness: float) -> None:
        """Take so many times as long for everything from now on; 1 is as fast as ever."""
        self._begun_s, self._real_s = self.time(), time.monotonic() if self._frozen_at is None else self._frozen_at
        self._slowness = slowness

    def later(self, delay_s: float, act: Callable[[], object]) -> Task:
        """Do something once that much time has passed, or as soon as it runs after that."""
        task, loop = Task(act), asyncio.get_running_loop()
        delay_s *= self._slowness
        if delay_s > 0:
            loop.call_later(delay_s, self._due, task)
        else:
            loop.call_soon(self._due, task)
        return task

    def freeze(self) -> None:
        """Stop computing."""
        if self._frozen_at is None:
            self._frozen_at = time.monotonic()

    def thaw(self) -> None:
        """Go on."""
        if self._frozen_at is None:
            return
        self._real_s += time.monotonic() - self._frozen_at
        self._frozen_at = None
        held, self._held = self._held, []
        for task in held:
            asyncio.get_running_loop().call_soon(self._due, task)

    def _due(self, task: Task) -> None:
        if self.frozen:
            self._held.append(task)
        else:
            task.do()
