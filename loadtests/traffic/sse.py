"""Server-sent events, read as the bytes come: https://html.spec.whatwg.org/multipage/server-sent-events.html

It is a reader of its own, and shares nothing with the gateway's: a load test that reads by the code that it tests would
not see what that code does not see.
"""

EVENT_BYTES_MAX = 16 << 20  # of one event; a server that never ends one is not read for ever


class TooLong(ValueError):
    """An event has more than EVENT_BYTES_MAX."""


class EventReader:
    """Bytes in, data of whole events out. What is begun waits for its end."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self.comments = 0

    @property
    def begun(self) -> bool:
        """Whether bytes have come that no event has yet."""
        return bool(self._rest or self._data)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, give the data of each event that they complete; lines of one event are joined by newlines.

        Raises TooLong.
        """
        text = self._rest + data
        held_back = text.endswith(b"\r")  # its newline may be still to come, and then is the same end of line
        lines = (text[:-1] if held_back else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + (b"\r" if held_back else b"")
        found: list[bytes] = []
        for line in lines:
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
            elif line.startswith(b":"):
                self.comments += 1
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._data.append(value)
                self._size += len(value)
        if self._size + len(self._rest) > EVENT_BYTES_MAX:
            raise TooLong(f"an event has more than {EVENT_BYTES_MAX} bytes")
        return found
