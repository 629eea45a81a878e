"""Connections in memory: bytes arrive late, torn to pieces, in order, or not at all."""

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from tests.sim.loop import SimLoop

APART_S = 1e-6  # two arrivals on one connection are never at the same time: timers have no order of their own
UNREACHABLE_S = 3600.0


class Host(Protocol):
    """Whoever listens."""

    refusing: bool
    unreachable: bool
    links: "list[Link]"

    def received(self, link: "Link", data: bytes) -> None: ...
    def left(self, link: "Link") -> None: ...


class Network:
    """Where hosts are found. torn: the share of writes that arrive in pieces."""

    def __init__(self, loop: SimLoop, rng: Random, latency_s: float, torn: float) -> None:
        self.loop, self._rng, self._latency_s, self._torn = loop, rng, latency_s, torn
        self.hosts: dict[str, Host] = {}
        self.links: list[Link] = []  # open at the client's end
        loop.dial = self.dial

    def latency_s(self) -> float:
        return self._latency_s * (0.5 + self._rng.random())

    def pieces(self, data: bytes) -> list[bytes]:
        """Tear a write as a network might."""
        if len(data) < 2 or self._rng.random() >= self._torn:
            return [data]
        cuts = sorted(self._rng.sample(range(1, len(data)), min(len(data) - 1, self._rng.randint(1, 4))))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    async def dial(self, factory: Callable[[], Any], address: str) -> tuple[Any, Any]:
        host = self.hosts[address]
        await asyncio.sleep(UNREACHABLE_S if host.unreachable else self.latency_s())
        if host.refusing:
            raise ConnectionRefusedError
        protocol = factory()
        link = Link(self, host, protocol)
        protocol.connection_made(link)
        return link, protocol


class Link(asyncio.Transport):
    """One connection: the transport at the client's end, with the server's end beside it.

    unread: what the server has got and has not looked at, since it stands still.
    unsent: what the server has to say and could not, for the same reason.
    """

    def __init__(self, network: Network, host: Host, protocol: Any) -> None:
        super().__init__()
        self._network, self._loop, self.host, self._protocol = network, network.loop, host, protocol
        self._closing = self._reading_paused = self._cut = False
        self._arrived: deque[bytes | Exception | None] = deque()
        self._down_s = self._up_s = 0.0  # when the last bytes arrive, each way
        self.unread: list[bytes] = []
        self.unsent: list[bytes] = []
        self.open = True  # at the server's end
        network.links.append(self)
        host.links.append(self)

    # -- the client's end

    def write(self, data: Any) -> None:
        if not self._closing:
            self._up_s = self._after(self._up_s)
            self._loop.at(self._up_s, self._reach, bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        assert not self._closing
        assert not self._reading_paused
        self._reading_paused = True

    def resume_reading(self) -> None:
        assert self._reading_paused
        self._reading_paused = False
        self._loop.call_soon(self._read)

    def abort(self) -> None:
        self._end(None)

    def close(self) -> None:
        self._end(None)

    # -- the server's end

    def send(self, data: bytes) -> None:
        """Say something to the client."""
        if not self._cut:
            for piece in self._network.pieces(data):
                self._down(piece)

    def hang_up(self, *, reset: bool) -> None:
        """End the connection. reset: also what is on its way is lost."""
        if self.open:
            self._drop()
            self._cut = reset
            self._down(ConnectionResetError() if reset else None)

    # -- between them

    def _down(self, what: bytes | Exception | None) -> None:
        self._down_s = self._after(self._down_s)
        self._loop.at(self._down_s, self._arrive, what)

    def _after(self, last_s: float) -> float:
        return max(self._loop.time() + self._network.latency_s(), last_s + APART_S)

    def _reach(self, data: bytes | None) -> None:
        if self.open and data is None:
            self._drop()
        elif self.open and data is not None:
            self.host.received(self, data)

    def _drop(self) -> None:
        self.open = False
        self.host.links.remove(self)
        self.host.left(self)

    def _arrive(self, what: bytes | Exception | None) -> None:
        if self._closing or (self._cut and isinstance(what, bytes)):
            return
        self._arrived.append(what)
        self._read()

    def _read(self) -> None:
        """Hand on what has arrived, in one read, and then the end."""
        if self._closing or self._reading_paused or not self._arrived:
            return
        parts: list[bytes] = []
        while self._arrived and isinstance(self._arrived[0], bytes):
            parts.append(self._arrived.popleft())  # type: ignore[arg-type]
        if parts:
            self._protocol.data_received(b"".join(parts))
            if self._arrived:
                self._loop.call_soon(self._read)
        elif (end := self._arrived.popleft()) is not None:
            self._end(end)  # type: ignore[arg-type]
        else:
            self._protocol.eof_received()
            self._end(None)

    def _end(self, why: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self._network.links.remove(self)
        self._loop.call_soon(self._protocol.connection_lost, why)
        self._up_s = self._after(self._up_s)
        self._loop.at(self._up_s, self._reach, None)
