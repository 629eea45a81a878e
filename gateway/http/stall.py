"""A client that does not read what waits for it."""

import asyncio


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
            self._transport.abort()
        elif unread:
            self._look()
