"""How a step is broken off, and how what must not be broken off is not: for the main thread alone."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class TimeIsUp(BaseException):
    """A scenario's time is over. No Exception: nobody who takes errors for observations shall take this."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp inside of the block, wherever it is, once it has taken so long."""

    def over(signum: int, frame: FrameType | None) -> NoReturn:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def sheltered() -> Iterator[None]:
    """Let no Ctrl-C, SIGTERM or SIGHUP break the block off; the first that came is raised after it."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda signum, _: came.append(signum)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """A handler for signals that end us: by an exception, so that everything started is ended."""
    raise SystemExit(128 + signum)
