"""An event loop in virtual time: it never waits, and all connections it makes are in memory."""

import asyncio
from collections.abc import Callable
from typing import Any

STEPS_MAX = 200_000  # of one world; one that takes more goes round in circles
TURN_S = 1e-6  # what a turn takes: a timer may be set for less than the clock can tell


class Stuck(Exception):
    """Somebody waits, and nothing will ever happen."""


class Ours:
    """A timer of the simulated surroundings; all others are the product's."""

    __slots__ = ("_act", "_args")

    def __init__(self, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._act, self._args = act, args

    def __call__(self) -> None:
        self._act(*self._args)


class SimLoop(asyncio.BaseEventLoop):
    """Time all but stands still while anything can be done, then jumps to the next timer.

    on_step: called after each turn of the loop.
    dial: makes connections; takes the protocol's factory and a host.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._now_s = 0.0
        self.steps = 0
        self.on_step: Callable[[], None] = lambda: None
        self.dial: Callable[[Callable[[], Any], str], Any]

    def time(self) -> float:
        return self._now_s

    def later(self, delay_s: float, act: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Have the surroundings do something."""
        return self.call_later(delay_s, Ours(act, args))

    def at(self, when_s: float, act: Callable[..., object], *args: Any) -> None:
        """The same, at a time."""
        self.call_at(when_s, Ours(act, args))

    def timers(self) -> list[asyncio.TimerHandle]:
        """The product's timers that are still to fire."""
        handles: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [one for one in handles if not one.cancelled() and not isinstance(one._callback, Ours)]  # type: ignore[attr-defined]

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:  # type: ignore[override]
        return await self.dial(factory, host)

    # -- what BaseEventLoop asks of a selector and of its own sub-class

    def select(self, timeout: float | None) -> list[Any]:
        """Nothing ever comes from outside: jump to the next timer."""
        self.steps += 1
        self.on_step()
        if timeout is None or self.steps > STEPS_MAX:
            raise Stuck("nothing will ever happen" if timeout is None else "too many steps")
        self._now_s += timeout + TURN_S
        return []

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """No other thread is there to wake us."""
