"""Bytes on their way to one client, and the legs that wait while it catches up."""

from collections.abc import Iterable
from typing import Protocol

from gateway.stream.seams import LegControl, Sink


class Fed(Protocol):
    """What a leg feeds; it may be held for another reason too."""

    leg: LegControl | None

    @property
    def held(self) -> bool: ...


class Outbox:
    """Gathers what one event, or one read, makes, and sends it in one write. A full sink pauses every leg.

    parts: those that the legs feed, as they are at any time.
    add: takes bytes in.
    sent: whether any of it went out; a sink may also have been begun by others, who only keep its client waiting.
    """

    __slots__ = (
        "_out", "_parts", "_sink", "add", "full", "sent",
    )  # fmt: skip

    def __init__(self, sink: Sink, parts: Iterable[Fed]) -> None:
        self._sink, self._parts = sink, parts
        self._out: list[bytes] = []
        self.add = self._out.append
        self.full = self.sent = False

    def clear(self) -> None:
        """Forget what was not sent."""
        self._out.clear()

    def flush(self, *, last: bool) -> None:
        """Send what has gathered. last: nothing more will come, so nobody is paused for it."""
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self.sent = True
        if self._sink.write(data) or last:
            return
        for part in self._parts:
            if part.leg is not None:
                part.leg.pause()
        if not self.full:
            self.full = True
            self._sink.on_room(self._room)

    def _room(self) -> None:
        self.full = False
        for part in self._parts:
            if part.leg is not None and not part.held:
                part.leg.resume()
