"""The way from an answer to the socket: whole writes, or one byte at a time, or a violent end."""

import asyncio
import socket
import struct
from collections.abc import Callable

LINGER_ZERO = struct.pack("ii", 1, 0)
BUFFER_BYTES_MAX = 256 << 10


class Pipe:
    """What an answer is written to."""

    def __init__(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=BUFFER_BYTES_MAX)
        self.transport = transport
        self.full = False  # kept by the protocol's pause_writing and resume_writing
        self.ended = False  # by this side, as ordered

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.transport.write(data)

    def after(self, act: Callable[[], None]) -> None:
        """Call once all that was written has been handed to the kernel, or soon after."""
        if self.transport.get_write_buffer_size() == 0 or self.transport.is_closing():
            act()
        else:
            asyncio.get_running_loop().call_later(0.001, self.after, act)

    def reset(self) -> None:
        """End the connection by RST, after what was written."""
        self.ended = True
        self.after(self._reset)

    def close(self) -> None:
        """End the connection by FIN, after what was written."""
        self.ended = True
        self.after(self.transport.close)

    def _reset(self) -> None:
        handle = self.transport.get_extra_info("socket")
        if handle is not None and not self.transport.is_closing():
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        self.transport.abort()


class DripPipe(Pipe):
    """Every byte in a write, and a packet, of its own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._held = bytearray()
        self._then: list[Callable[[], None]] = []

    def write(self, data: bytes) -> None:
        if not self._held:
            asyncio.get_running_loop().call_soon(self._drop)
        self._held += data

    def after(self, act: Callable[[], None]) -> None:
        if self._held:
            self._then.append(act)
        else:
            super().after(act)

    def _drop(self) -> None:
        if self.transport.is_closing():
            self._held.clear()
        if self._held:
            self.transport.write(bytes(self._held[:1]))
            del self._held[:1]
        if self._held:
            asyncio.get_running_loop().call_soon(self._drop)
            return
        acts, self._then = self._then, []
        for act in acts:
            super().after(act)
