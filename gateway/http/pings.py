"""What keeps a waiting client's connection alive: a comment where nothing was sent for a while.

Proxies and clients give up a stream that is silent for long, as one is that waits for its first token. What clients
skip is a comment of one line: an event without data, or an empty line behind the comment, makes some of them fail.
"""

import asyncio
from typing import Protocol

LOOKS = 5  # at each stream, in the time after which it gets a comment


class Quiet(Protocol):
    """A stream. quiet: whether nothing was sent since it was looked at last."""

    quiet: bool

    def ping(self) -> None:
        """Send a comment."""


class Pings:
    """Looks at all waiting streams with one timer, so that a chunk costs nothing but a note that it was sent.

    every_s: of silence, in seconds; a comment comes up to a fifth later. 0 for never.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._looks: dict[Quiet, int] = {}  # at how many in a row each was quiet
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Quiet) -> None:
        """Look after a stream from now on, which starts not quiet."""
        if self._every_s:
            self._looks[stream] = 0
            if self._timer is None:
                self._again()

    def forget(self, stream: Quiet) -> None:
        """Look after it no more."""
        self._looks.pop(stream, None)

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        for stream, looks in list(self._looks.items()):
            looks = looks + 1 if stream.quiet else 0
            if looks == LOOKS:
                stream.ping()
                looks = 0
            self._looks[stream], stream.quiet = looks, True
        if self._looks:
            self._again()
