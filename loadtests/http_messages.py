"""Just enough HTTP/1.1 to tell where messages in a byte stream begin, end, and have their body."""

from collections.abc import Iterator
from enum import Enum, auto

HEAD_BYTES_MAX = 256 << 10
_LINE_BYTES_MAX = 8 << 10


class BadMessage(Exception):
    """Bytes that are not HTTP/1.1, or a head beyond all bounds."""


class Part(Enum):
    """What a run of bytes in the stream is."""

    HEAD = auto()  # a whole head, its empty line included
    BODY = auto()
    FRAMING = auto()  # chunk sizes and the ends of chunks
    END = auto()  # no bytes: the message is complete


class MessageReader:
    """Splits a stream of requests or of responses; every byte fed comes out again, in order."""

    def __init__(self, responses: bool) -> None:
        self._responses = responses
        self._held = b""
        self._state = self._head
        self._left = 0
        self._ended = False

    def feed(self, data: bytes) -> Iterator[tuple[Part, bytes]]:
        """Give the parts that the bytes complete. Heads and lines are held until they are whole."""
        data, self._held = self._held + data, b""
        while data:
            part, size = self._state(data)
            if size == 0:
                self._held = data
                return
            if part is not None:
                yield part, data[:size]
            data = data[size:]
            if self._ended:
                self._ended = False
                yield Part.END, b""

    def _head(self, data: bytes) -> tuple[Part | None, int]:
        size = data.find(b"\r\n\r\n") + 4
        if size == 3:
            if len(data) > HEAD_BYTES_MAX:
                raise BadMessage("no end of the head")
            return None, 0
        fields = _fields(data[:size])
        if self._responses and data[9:10] == b"1":
            return Part.HEAD, size  # 100 Continue: the answer itself is still to come
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            self._state = self._size
        elif b"content-length" in fields:
            self._left = int(fields[b"content-length"])
            self._state, self._ended = (self._counted, False) if self._left else (self._head, True)
        elif self._responses and data[9:12] not in (b"204", b"304"):
            self._state = self._rest
        else:
            self._finish()
        return Part.HEAD, size

    def _counted(self, data: bytes) -> tuple[Part | None, int]:
        size = min(self._left, len(data))
        self._left -= size
        if self._left == 0:
            self._finish()
        return Part.BODY, size

    def _rest(self, data: bytes) -> tuple[Part | None, int]:
        return Part.BODY, len(data)

    def _size(self, data: bytes) -> tuple[Part | None, int]:
        size = self._line(data)
        if size:
            try:
                self._left = int(data[:size].split(b";")[0], 16)
            except ValueError as error:
                raise BadMessage("no chunk size") from error
            self._state = self._chunk if self._left else self._trailer
        return Part.FRAMING, size

    def _chunk(self, data: bytes) -> tuple[Part | None, int]:
        size = min(self._left, len(data))
        self._left -= size
        if self._left == 0:
            self._state = self._chunk_end
        return Part.BODY, size

    def _chunk_end(self, data: bytes) -> tuple[Part | None, int]:
        size = self._line(data)
        if size:
            self._state = self._size
        return Part.FRAMING, size

    def _trailer(self, data: bytes) -> tuple[Part | None, int]:
        size = self._line(data)
        if size == 2:
            self._finish()
        return Part.FRAMING, size

    def _line(self, data: bytes) -> int:
        end = data.find(b"\n") + 1
        if end == 0 and len(data) > _LINE_BYTES_MAX:
            raise BadMessage("no end of the line")
        return end

    def _finish(self) -> None:
        self._state = self._head
        self._ended = True


def _fields(head: bytes) -> dict[bytes, bytes]:
    pairs = (line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}
