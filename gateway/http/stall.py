"""A client that does not read what waits for it."""

import asyncio
import socket
import struct

RESET = struct.pack("ii", 1, 0)  # linger for no time: closing discards what the kernel could not send


class Stall:
    """Hangs up on a client that takes nothing of what waits for it for `stall_s` seconds; a slow one may go on.

    It looks until everything was taken, also on a connection that is being closed: without it such a one would stay,
    with its socket and its bytes, for as long as its client likes.
    """

    __slots__ = ("_stall_s", "_timer", "_transport", "_unread")

    def __init__(self, transport: asyncio.Transport, stall_s: float) -> None:
        self._transport, self._stall_s = transport, stall_s
        self._look()

    def cancel(self) -> None:
        """The client has caught up, or is gone."""
        self._timer.cancel()

    def _look(self) -> None:
        self._unread = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._check)

    def _check(self) -> None:
        unread = self._transport.get_write_buffer_size()
        if unread and unread >= self._unread:
            self._hang_up()
        elif unread:
            self._look()

    def _hang_up(self) -> None:
        """By a reset: else the kernel would keep megabytes for this client, and offer them for a quarter of an hour."""
        handle = self._transport.get_extra_info("socket")
        if handle is not None:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()
