"""One upstream attempt: what it was asked, what it brings, how it ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.silences import Silences
from gateway.stream.sse import DATA, END, LF, EventSplitter, EventTooLong


class Receiver(Protocol):
    """Who takes in a stream's events."""

    def events(self, raws: list[bytes]) -> None: ...


@dataclass(frozen=True)
class Target:
    """Where a replica listens; `key` its upstream key, `name` its public name.

    first_token_s, between_tokens_s: how long to wait there, in seconds; unsaid, as everywhere.
    """

    name: str
    host: str
    port: int
    tls: bool = False
    key: str | None = None
    first_token_s: float | None = None
    between_tokens_s: float | None = None


@dataclass(frozen=True)
class UpstreamLimits:
    """Times in seconds, sizes in bytes."""

    connect_s: float = 0.5
    first_token_s: float = 60.0
    between_tokens_s: float = 10.0
    head_bytes: int = 65536
    event_bytes: int = 4 << 20
    answer_bytes: int = 64 << 20
    idle_s: float = 4.0  # below uvicorn's keep-alive of 5 s, so that the pool does not race the server's close
    idle_connections: int = 64  # per replica


class Watch(Protocol):
    """Who keeps an eye on a leg's silences. Times in seconds."""

    @property
    def patience_s(self) -> float:
        """How long a silence may last before it is suspicious."""

    def token(self, after_s: float) -> None:
        """Tokens have come, so long after those before, or after the leg began."""

    def silence(self) -> None:
        """A suspicious silence goes on; may be told more than once."""

    def over(self) -> None:
        """The leg has ended."""


class Wire(Protocol):
    """The connection that carries a leg."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Carrier(Protocol):
    """Whoever opens legs, and gets their connections back."""

    loop: asyncio.AbstractEventLoop
    limits: UpstreamLimits
    silences: Silences

    def released(self, leg: "Leg") -> None:
        """A leg has ended."""


LOOK_AGAIN_S = 0.02  # a silence is looked at twice: tokens may wait in a socket that we did not come to read
TICK_S = 0.001  # of the loop's clock: a timer may fire by so much too early


class Leg:
    """One upstream attempt. `ended` resolves exactly once, whatever happens.

    receiver: takes a stream's events; None for a plain answer, whose body is in the LegEnd.
    watch: told of a stream's tokens and silences. Comments, heads and events without tokens are silence.
    on_end: called when `ended` is there, at once; the callbacks of a future wait for the loop's next turn.
    bytes_max: of an answer that is gathered.
    """

    __slots__ = (
        "_body", "_body_bytes", "_doubted", "_heard_at", "_limits", "_paused_at", "_progressed", "_splitter",
        "_upstream", "_wait_s", "_watch", "bytes_max", "connection", "ended", "on_end", "over", "paused", "receiver",
        "request", "status", "streaming", "target",
    )  # fmt: skip

    def __init__(
        self,
        upstream: Carrier,
        target: Target,
        request: bytes,
        receiver: Receiver | None,
        watch: Watch | None = None,
    ) -> None:
        self.ended: asyncio.Future[LegEnd] = upstream.loop.create_future()
        self.on_end: Callable[[], None] | None = None
        self.target, self.receiver, self.request = target, receiver, request
        self._upstream, self._limits = upstream, upstream.limits
        self.bytes_max = upstream.limits.answer_bytes
        self.connection: Wire | None = None
        self._splitter = EventSplitter(self._limits.event_bytes)
        self._body: list[bytes] = []
        self._body_bytes = 0
        self.status = 0
        self.streaming = False
        self.paused = False
        self.over = False
        self._heard_at = self._paused_at = upstream.loop.time()
        self._wait_s = target.first_token_s or self._limits.first_token_s
        self._progressed = False
        self._doubted = False
        self._watch = watch
        if receiver is not None:
            upstream.silences.add(self, self._heard_at + self._patience_s)

    # -- LegControl, for the relay

    def pause(self) -> None:
        """Stop reading; also what was read already waits."""
        if not self.paused:
            self.paused, self._paused_at = True, self._upstream.loop.time()
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        self.paused = False
        self._heard_at = self._upstream.loop.time()
        if self.connection is not None:
            self.connection.resume()

    def close(self) -> None:
        """Give the answer up; vLLM notices the closed connection and stops computing."""
        self.end(LegEnd(Cause.CLOSED))

    def progress(self) -> None:
        """Tokens arrived. Those of one read count once: the loop's clock stands still meanwhile.

        Those that waited for a lease had come when the leg was paused for it.
        """
        now = self._paused_at if self.paused else self._upstream.loop.time()
        if now == self._heard_at or self.over:
            return
        if self._watch is not None:
            self._watch.token(now - self._heard_at)
        self._heard_at = now
        if not self._progressed:
            self._progressed, self._wait_s = True, self.target.between_tokens_s or self._limits.between_tokens_s
            self._upstream.silences.expect(now + self._patience_s)

    def fault(self, error: Exception) -> None:
        """A bug of ours was met: it must surface in the flow, not vanish in the event loop."""
        if not self.over:
            self.over = True
            if not self.ended.done():
                self.ended.set_exception(error)
            self._release()

    # -- for the connection

    def begin(self, status: int, content_type: bytes) -> None:
        """The head has arrived."""
        self.status = status
        self.streaming = status == 200 and self.receiver is not None and content_type.startswith(b"text/event-stream")

    def data(self, data: bytes) -> None:
        """Body bytes have arrived."""
        try:
            if self.streaming:
                assert self.receiver is not None
                if (
                    data.endswith(END) and data.startswith(DATA)
                    and LF not in (event := data[:-2]) and not self._splitter.partial
                ):  # fmt: skip
                    self.receiver.events([event])  # the usual read is one event
                elif raws := self._splitter.feed(data):
                    self.receiver.events(raws)
            else:
                self._gather(data)
        except EventTooLong:
            self.end(LegEnd(Cause.PROTOCOL, "the server sent an event without an end"))
        except Exception as error:
            self.fault(error)

    def complete(self) -> None:
        """The whole answer has arrived."""
        body = b"".join(self._body)
        if self.status >= 500:
            self.end(LegEnd(Cause.FAILED, f"the server answered status {self.status}", self.status, body))
        elif self.status >= 400:
            self.end(LegEnd(Cause.REFUSED, f"the server answered status {self.status}", self.status, body))
        elif self.status != 200 or (self.receiver is not None and not self.streaming):
            self.end(LegEnd(Cause.PROTOCOL, "the server's answer was not the one asked for", self.status))
        else:
            self.end(LegEnd(Cause.DONE, "the stream ended without a finish_reason", self.status, body))

    def end(self, end: LegEnd) -> None:
        """Settle `ended`, once, and let the connection go; also when whoever awaited it was cancelled."""
        if self.over:
            return
        self.over = True
        if not self.ended.done():
            self.ended.set_result(end)
        self._release()

    def _release(self) -> None:
        if self.on_end is not None:
            self.on_end()
            self.on_end = None  # it is its request's, which knows this leg
        if self.receiver is not None:
            self._upstream.silences.forget(self)
        if self._watch is not None:
            self._watch.over()
        self._upstream.released(self)

    def _gather(self, data: bytes) -> None:
        self._body.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > self.bytes_max:
            self.end(LegEnd(Cause.PROTOCOL, "the server's answer was too large"))

    @property
    def _patience_s(self) -> float:
        return self._wait_s if self._watch is None else min(self._watch.patience_s, self._wait_s)

    def look(self, now_s: float) -> float:
        """For `Silences`. Nothing is scheduled per chunk, and nothing per leg.

        1. Somebody waits for us, or tokens came: look again when they could be late.
        2. Silent too long, for the first time: it may be this process that was not running.
        3. Silent too long: suspicious, but the leg stays.
        4. Silent beyond all limits: the leg ends.
        """
        silent_s, patience_s = now_s - self._heard_at + TICK_S, self._patience_s
        if self.paused or silent_s < patience_s:
            self._doubted = False
            return (now_s if self.paused else self._heard_at) + patience_s
        if not self._doubted:
            self._doubted = True
            return now_s + LOOK_AGAIN_S
        if silent_s < self._wait_s:
            if self._watch is not None:
                self._watch.silence()
            return min(now_s + patience_s, self._heard_at + self._wait_s)
        first = "" if self._progressed else "first "
        self.end(LegEnd(Cause.SILENT, f"no {first}token arrived within {self._wait_s:g} s", late=True))
        return inf
