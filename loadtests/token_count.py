"""Counting token ids in the bytes of an event stream, however the bytes are split."""

_MARK = b'"token_ids":['
# Within a JSON string the quotes of the mark would be escaped; `"prompt_token_ids":[` lacks its first one.


class TokenCount:
    """Counts the ids of `"token_ids":[...]` and knows when the event that carried them is complete."""

    def __init__(self) -> None:
        self.tokens = 0  # in complete events
        self._open = 0  # in the event that is still coming
        self._tail = b""  # the end of what came, as long as a mark or an event's end could begin in it
        self._inside = False  # between the brackets
        self._number = False  # within an id

    def feed(self, data: bytes, until: int | None = None) -> int | None:
        """Count; give the offset in `data` just after the event by which `until` tokens were complete.

        None when they are not complete yet; what comes after that offset is not counted.
        """
        if until is not None and self.tokens >= until:
            return 0
        for offset in range(len(data)):
            self._byte(data[offset : offset + 1])
            if until is not None and self._tail == b"" and self.tokens >= until:
                return offset + 1
        return None

    def _byte(self, byte: bytes) -> None:
        if self._inside:
            if byte.isdigit() or byte == b"-":
                self._number = True
                return
            self._open += self._number
            self._number = False
            self._inside = byte != b"]"
            return
        self._tail = (self._tail + byte)[-len(_MARK) :]
        if self._tail == _MARK:
            self._inside = True
        elif self._tail.endswith(b"\n\n"):
            self.tokens += self._open
            self._open = 0
            self._tail = b""
