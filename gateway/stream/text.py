"""Text as a function of token ids: for the part of a stream that the gateway words itself.

After a leg was lost, the standby's text is never forwarded: when the cut falls inside a UTF-8
character, vLLM's first delta holds the whole decoded prompt (vLLM issue 48853). The ids are exact,
so the text is made from them, with the decoder vLLM itself uses, or by the standby's /detokenize.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

INCOMPLETE = "�"  # what a decoder writes for a character whose bytes have not all arrived
PROMPT_TAIL = 16  # ids of context that the remote decoder keeps in front: enough to settle leading spaces
IDS_WAITING_MAX = 256  # ids that wait for a remote decoder when the leg that brings more is paused


class Piece(NamedTuple):
    """Text that some ids added; empty while a character is incomplete."""

    ids: Sequence[int]
    text: str


class TextLost(Exception):
    """The ids can no longer be turned into text; the message says why, for the client."""


Then = Callable[[list[Piece]], None]


class Decoder(Protocol):
    """Turns the ids of one choice into text, in order."""

    def prime(self, prompt: Sequence[int]) -> None:
        """Take in the prompt, before any id."""

    async def adopt(self, prompt: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        """Take in what was generated before; answer its pieces. Raises TextLost."""

    @property
    def room(self) -> bool:
        """Whether it keeps up; where not, whoever pushes should wait."""

    def push(self, ids: Sequence[int], then: Then, lost: Callable[[TextLost], None]) -> bool:
        """Decode further ids and hand the pieces to `then`, at once or later, in order; answers `room`.

        lost: told once, instead, when there will be no more text.
        """

    async def drained(self) -> None:
        """Wait until every push has been answered, or lost."""

    def close(self) -> None:
        """Answer no more."""


class LocalDecoder:
    """vLLM's own incremental decoding (v1/engine/detokenizer.py), from the served model's tokenizer.

    Prompt ids prime it, as in vLLM, so that a leading space is settled the same way.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._stream = DecodeStream(skip_special_tokens=skip_special)

    def prime(self, prompt: Sequence[int]) -> None:
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=self._skip)

    async def adopt(self, prompt: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        self.prime(prompt)
        return [Piece((one,), self._step(one)) for one in ids]

    @property
    def room(self) -> bool:
        return True

    def push(self, ids: Sequence[int], then: Then, lost: Callable[[TextLost], None]) -> bool:
        then([Piece((one,), self._step(one)) for one in ids])
        return True

    async def drained(self) -> None:
        return

    def close(self) -> None:
        return

    def _step(self, one: int) -> str:
        try:
            return self._stream.step(self._tokenizer, one) or ""
        except (OverflowError, TypeError):  # vLLM issue 21951: an id it cannot hold has no text
            return ""
        except Exception as error:
            if "Invalid prefix encountered" not in str(error):
                raise
            # vLLM issue 17448: output that is not monotonic breaks the stream's state; start afresh, as vLLM does.
            self._stream = DecodeStream(skip_special_tokens=self._skip)
            return self._stream.step(self._tokenizer, one) or ""


class RemoteDecoder:
    """Decoding by a replica's /detokenize, where no tokenizer is at hand: one call at a time, in order.

    decode: ids -> text, with every special token spelled out; raises TextLost.
    singly: one call for each id, also where several come at once; else nobody could tell which of them
        were said before a stop string.
    The window of ids that is sent again stays short: it moves on whenever the text so far is whole.
    """

    def __init__(self, decode: Callable[[Sequence[int]], Awaitable[str]], *, singly: bool = False) -> None:
        self._decode, self._singly = decode, singly
        self._context: list[int] = []  # ids whose text was given
        self._context_chars: int | None = 0  # of their text; None while it is not known
        self._open: list[int] = []  # ids after them, whose text may end inside a character
        self._given = 0  # characters of the open ids' text that were given
        self._queue: deque[tuple[Sequence[int], Then]] = deque()
        self._waiting = 0
        self._work: asyncio.Task[None] | None = None
        self._failed = False

    def prime(self, prompt: Sequence[int]) -> None:
        self._context = list(prompt[-PROMPT_TAIL:])
        self._context_chars = None if self._context else 0

    async def adopt(self, prompt: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        self.prime(prompt)
        return [Piece(ids, await self._text(ids))] if ids else []

    @property
    def room(self) -> bool:
        return self._waiting < IDS_WAITING_MAX

    def push(self, ids: Sequence[int], then: Then, lost: Callable[[TextLost], None]) -> bool:
        if not self._failed:
            self._queue.append((ids, then))
            self._waiting += len(ids)
            if self._work is None:
                self._work = asyncio.get_running_loop().create_task(self._drain(lost))
        return self.room

    async def drained(self) -> None:
        if self._work is not None:
            await asyncio.wait([self._work])

    def close(self) -> None:
        self._failed = True
        if self._work is not None:
            self._work.cancel()

    async def _drain(self, lost: Callable[[TextLost], None]) -> None:
        try:
            while self._queue:
                ids, then = self._queue.popleft()
                steps = [(one,) for one in ids] if self._singly else [ids]
                pieces = [Piece(step, await self._text(step)) for step in steps]
                self._waiting -= len(ids)
                then(pieces)
        except TextLost as error:
            self._failed = True
            lost(error)
        finally:
            self._work = None

    async def _text(self, ids: Sequence[int]) -> str:
        """Decode a window with and without what is new (the prefix offsets of vLLM's slow detokenizer)."""
        self._open += ids
        if self._context_chars is None:
            self._context_chars = len(await self._decode(self._context))
        window = self._context + self._open
        text = (await self._decode(window))[self._context_chars :]
        whole = text.rstrip(INCOMPLETE)
        new = whole[self._given :] if len(whole) < len(text) else text[self._given :]
        self._given += len(new)
        if len(whole) == len(text):
            self._context, self._open, self._given = window[-PROMPT_TAIL:], [], 0
            self._context_chars = None
        return new


class Transcript:
    """The text of one choice: what may be sent, what is held back, whether a stop string ended it.

    Does as vLLM's detokenizer does: stop strings count once more than `min_tokens` tokens are there;
    the one that completes first wins, ties by their order; unless it is to be included, as many
    characters as could begin a stop string are held back.
    """

    def __init__(self, stop: Sequence[str], include_stop: bool, min_tokens: int) -> None:
        self._stop, self._include, self._min_tokens = stop, include_stop, min_tokens
        self._longest = max(map(len, stop), default=0)
        self._hold_back = 0 if include_stop or not stop else self._longest - 1
        self._text = ""  # the tail of the text: all that is unsent, and enough before it to match a stop string
        self._sent = 0  # characters of _text that are sent
        self.tokens = 0
        self.stopped: str | None = None

    def add(self, pieces: Sequence[Piece]) -> int:
        """Take in text; answer how many of the pieces' ids count: those after a stop string do not."""
        kept = 0
        for piece in pieces:
            if self.stopped is not None:
                break
            self.tokens += len(piece.ids)
            kept += len(piece.ids)
            self._text += piece.text
            if piece.text and self._stop and self.tokens > self._min_tokens:
                self._match(len(piece.text))
        return kept

    def skip(self, characters: int) -> str:
        """Mark the first characters as sent, and return them: what the client has from another leg."""
        self._sent = characters
        return self._text[:characters]

    def take(self, final: bool) -> str:
        """What may be sent now; everything once the choice is finished."""
        end = len(self._text) if final or self.stopped is not None else len(self._text) - self._hold_back
        new = self._text[self._sent : end] if end > self._sent else ""
        self._sent += len(new)
        surplus = min(self._sent, len(self._text) - self._longest + 1)
        if surplus > 4096:
            self._text = self._text[surplus:]
            self._sent -= surplus
        return new

    def _match(self, new: int) -> None:
        found: tuple[int, int, str] | None = None  # end, start, string
        for stop in self._stop:
            start = self._text.find(stop, max(0, len(self._text) - new - len(stop) + 1))
            if start >= 0 and (found is None or start + len(stop) < found[0]):
                found = (start + len(stop), start, stop)
        if found is not None:
            self.stopped = found[2]
            self._text = self._text[: found[0] if self._include else found[1]]


class TokenizerInvalid(Exception):
    """A tokenizer.json that cannot be loaded; the message names it."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a model's tokenizer.json, given itself or its directory. Raises TokenizerInvalid."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise TokenizerInvalid(f"{file}: not a tokenizer.json that can be loaded ({error})") from None
