"""What the stub says: the next token as a pure function of the seed and of all ids before it.

The state is a running checksum over prompt and emitted ids, so that the boundary between the two
does not matter: a continuation from `prompt + emitted` says exactly what an uninterrupted run says.
"""

import zlib
from array import array
from collections.abc import Callable, Sequence
from functools import cache

from loadtests.stub_tokenizer import ASSISTANT, EOS, PIECES_START, token_bytes

# Said as single bytes, so that a cut can fall inside of them; two to four bytes each.
CHARACTERS = tuple(character.encode() for character in "éßñøжЩאع中文字한글€∑🦀😀🚀🎉𝛑")
PUNCTUATION = b".,;:!?\"'\\/\n{}[]<&\t"
LENGTH_MIN, LENGTH_SPREAD = 16, 185  # tokens of a chat answer that names no length
EOS_ONE_IN = 128  # for sequences without an assistant marker

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Language:
    """One model: a vocabulary and a seed."""

    def __init__(self, vocab: int, seed: int) -> None:
        self.vocab = vocab
        self.seed = seed
        self.bytes_of = token_bytes(vocab)
        self._packed = [token.to_bytes(4, "little") for token in range(vocab)]
        self._origin = zlib.crc32(seed.to_bytes(8, "little", signed=True))
        self._pieces = vocab - PIECES_START

    def state(self, ids: Sequence[int]) -> int:
        """Digest a sequence of ids."""
        return zlib.crc32(array("I", ids).tobytes(), self._origin)

    def after(self, state: int, token: int) -> int:
        """Digest the sequence that has one token more."""
        return zlib.crc32(self._packed[token], state)

    def draw(self, state: int, pending: bytes, room: int, may_end: bool) -> int:
        """Give the next token.

        pending: bytes of a character that is not complete; room: tokens left before the end, which
        a character must not overrun; may_end: whether the end of sequence may be drawn by chance.
        """
        mixed = ((state ^ (state >> 15)) * _MIX) & _MASK
        chance = mixed >> 20
        if pending:
            return _continued(pending, chance)
        if may_end and (mixed >> 8) % EOS_ONE_IN == 0:
            return EOS
        kind = chance & 31
        chance >>= 5
        if kind < 3 and room > 4:
            return CHARACTERS[chance % len(CHARACTERS)][0]
        if kind == 3:
            return PUNCTUATION[chance % len(PUNCTUATION)]
        return PIECES_START + chance % self._pieces


class Speech:
    """One choice being said: ids, one after the other, until the end of sequence."""

    def __init__(
        self,
        language: Language,
        prompt: Sequence[int],
        choice: int = 0,
        length: int | None = None,
        may_end: Callable[[int], bool] = lambda emitted: True,
        noise: int | None = None,
    ) -> None:
        """Start after the prompt.

        choice: which of n; only its first token is swayed by this, what follows depends on the ids.
        length: tokens from the start of the answer, the end of sequence included.
        may_end: whether the end of sequence is allowed after that many tokens of this request.
        noise: a seed by which what is said depends on how much this request has said before, as a sampler's does.
        """
        self._language = language
        self._state = language.state(prompt)
        self._sway = choice * 0x85EBCA6B
        self._may_end, self._noise = may_end, noise
        marker = _last_marker(prompt)
        # An answer begins after the last assistant marker, whichever server said its first tokens.
        self.start = marker if marker is not None else len(prompt)
        self.position = len(prompt) - self.start
        self._length = length
        if length is None and marker is not None:
            self._length = LENGTH_MIN + language.state(prompt[:marker]) % LENGTH_SPREAD
        self._pending = pending_bytes(b"".join([language.bytes_of[token] for token in prompt[-4:]]))
        self.emitted = 0

    @property
    def inside_character(self) -> bool:
        """Tell whether the last character still lacks bytes."""
        return bool(self._pending)

    def next(self) -> int:
        """Say one more token."""
        language, pending = self._language, self._pending
        may_end = self._may_end(self.emitted)
        room = 1 << 30 if self._length is None else self._length - self.position
        if may_end and room <= 1 and not pending:
            token = EOS
        else:
            chance = may_end and self._length is None
            drawn = 0 if self._noise is None else zlib.crc32(b"%d,%d" % (self._noise, self.emitted))
            token = language.draw(self._state ^ self._sway ^ drawn, pending, room if may_end else 1 << 30, chance)
        return self.say(token)

    def say(self, token: int) -> int:
        """Say this one, whatever would have been said."""
        language, pending = self._language, self._pending
        self._sway = 0
        self._state = language.after(self._state, token)
        if token < 256:
            self._pending = pending_bytes(pending + language.bytes_of[token])
        elif pending:
            self._pending = b""
        self.position += 1
        self.emitted += 1
        return token


def pending_bytes(data: bytes) -> bytes:
    """Give the bytes at the end that begin a character without completing it."""
    for back in range(1, min(4, len(data)) + 1):
        lead = data[-back]
        if lead < 0x80:
            return b""
        if lead >= 0xC2:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return data[-back:] if lead <= 0xF4 and back < needed else b""
    return b""


@cache
def _completions(pending: bytes) -> bytes:
    return bytes([known[len(pending)] for known in CHARACTERS if known.startswith(pending)])


def _continued(pending: bytes, chance: int) -> int:
    known = _completions(pending)
    # A beginning that the language itself would not say: any byte valid after every lead will do.
    return known[chance % len(known)] if known else 0x90 + chance % 16


def _last_marker(prompt: Sequence[int]) -> int | None:
    for index in range(len(prompt) - 1, -1, -1):
        if prompt[index] == ASSISTANT:
            return index + 1
    return None
