"""The stub's text from ids, held back exactly as vLLM holds it back.

Two reasons to hold text: a character that lacks bytes, and a stop string that may be beginning.
The first follows Hugging Face's DecodeStream, its flaw included: primed with a prompt that ends
inside a character, it gives out the whole decoded prompt with the first text (vLLM issue 48853).
"""

from collections.abc import Sequence

REPLACEMENT = "\ufffd"


class Decoder:
    """Ids in, text out, incomplete characters kept."""

    def __init__(self, bytes_of: Sequence[bytes], prompt: Sequence[int]) -> None:
        self._bytes_of = bytes_of
        self._held = b""
        tail = b"".join([bytes_of[token] for token in prompt[-8:]])
        if tail.decode("utf-8", "replace").endswith(REPLACEMENT):
            self._held = b"".join([bytes_of[token] for token in prompt])

    @property
    def holding(self) -> bool:
        """Tell whether bytes were given whose text was not."""
        return bool(self._held)

    def step(self, token: int) -> str:
        """Give the text that this token completes, often none."""
        held = self._held + self._bytes_of[token]
        text = held.decode("utf-8", "replace")
        if not text or text.endswith(REPLACEMENT):
            self._held = held
            return ""
        self._held = b""
        return text


class Output:
    """The text of one choice: what has been said, what was released, and whether it must stop."""

    def __init__(self, decoder: Decoder, stops: Sequence[str], keep_stop: bool, min_tokens: int) -> None:
        self._decoder = decoder
        self._stops = stops
        self._keep_stop = keep_stop
        self._min_tokens = min_tokens
        self._reserve = max((len(stop) for stop in stops), default=1) - 1 if not keep_stop else 0
        self._text = ""
        self._released = 0
        self._tokens = 0

    @property
    def holding(self) -> bool:
        """Tell whether a character lacks bytes."""
        return self._decoder.holding

    def add(self, token: int) -> str | None:
        """Take one token; give the stop string that it completed, if any."""
        piece = self._decoder.step(token)
        self._text += piece
        self._tokens += 1
        if not self._stops or not piece or self._tokens <= self._min_tokens:
            return None
        # Several may match at once: the one that completes earliest counts, then the order given.
        fresh = len(self._text) - len(piece) + 1  # a match that ended before was seen before
        ends = [(self._text.find(stop, max(0, fresh - len(stop))), stop) for stop in self._stops]
        found = min(((begin + len(stop), begin, stop) for begin, stop in ends if begin >= 0), key=_end, default=None)
        if found is None:
            return None
        end, begin, stop = found
        self._text = self._text[: end if self._keep_stop else begin]
        return stop

    def release(self, finished: bool) -> str:
        """Give the text that has become sure since the last call."""
        end = len(self._text) if finished else len(self._text) - self._reserve
        if end <= self._released:
            return ""
        text = self._text[self._released : end]
        self._released = end
        if not self._stops:  # nothing will look back: keep the memory of a long stream flat
            self._text, self._released = "", 0
        return text


def _end(found: tuple[int, int, str]) -> int:
    return found[0]
