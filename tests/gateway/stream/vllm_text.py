"""vLLM's detokenizer, in small: the reference that the gateway's text is compared with.

Follows BaseIncrementalDetokenizer.update, get_next_output_text and check_stop_strings of vLLM 0.32.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from gateway.stream.text import load_tokenizer
from loadtests.stub_tokenizer import write_tokenizer

VOCAB = 1024


@cache
def tokenizer() -> Tokenizer:
    """A real tokenizer whose characters of several bytes arrive byte by byte."""
    with TemporaryDirectory() as folder:
        return load_tokenizer(write_tokenizer(Path(folder), VOCAB))


def decode_step(prompt: Sequence[int], skip_special: bool = True) -> Callable[[int], str]:
    """Decode token by token, as vLLM does after a prompt."""
    stream = DecodeStream(ids=list(prompt), skip_special_tokens=skip_special)
    return lambda one: stream.step(tokenizer(), one) or ""


class VllmText:
    """The text of one output, as vLLM streams it."""

    def __init__(self, step: Callable[[int], str], stop: Sequence[str], include: bool, min_tokens: int) -> None:
        self._step, self._stop, self._include, self._min = step, list(stop), include, min_tokens
        self._buffer = max(map(len, stop)) - 1 if stop and not include else 0
        self._given = 0
        self.text = ""
        self.tokens = 0

    def update(self, ids: Sequence[int], stopped: bool) -> tuple[str, int] | None:
        """Add new tokens; give the stop string that ends it and how many of the tokens count."""
        before = self.tokens
        silent = 1 if stopped and not self._include else 0
        offsets = [len(self.text)]
        for one in ids[: len(ids) - silent]:
            self.text += self._step(one)
            offsets.append(len(self.text))
        offsets += [len(self.text)] * silent
        self.tokens += len(ids)
        if not self._stop or not ids or self.tokens <= self._min:
            return None
        new = len(self.text) - offsets[max(self._min - before, 0)]
        return self._check(new, offsets) if new else None

    def give(self, finished: bool) -> str:
        """The text that may be sent since the last time."""
        end = len(self.text) - (0 if finished else self._buffer)
        if end <= self._given:
            return ""
        given, self._given = self.text[self._given : end], end
        return given

    def _check(self, new: int, offsets: list[int]) -> tuple[str, int] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = self.text.find(stop, 1 - new - len(stop))
            if start != -1 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), start, stop)
        if best is None:
            return None
        kept = bisect_left(offsets, best[0], lo=1)
        self.text = self.text[: best[0] if self._include else best[1]]
        return best[2], kept
