"""The bytes of a measured answer, in vLLM's shapes: made once, but for a number and the time in each chunk."""

import re
import time
from typing import NamedTuple

from loadtests import stub_wire as wire

MODEL = "bench"
PROMPT_TOKENS = 12
TOKENS_PER_PLAIN = 100  # of four characters each: 400 bytes of text
TOKEN = 5357
_MARK = "~%07d~%019d~"  # filled in for each chunk: its number, and the monotonic clock in nanoseconds
_ID, _CREATED = "chatcmpl-6f1d2c3b4a596877", 1795229586
_FINGERPRINT = "vllm-0.32.0-8122dec2"

SEEN = re.compile(rb"~(\d{7})~(\d{19})~")


class Words(NamedTuple):
    """What one kind of client is answered: with token ids, or without. `chunk` has slots for number and time."""

    opening: bytes
    chunk: bytes
    closing: bytes
    plain: bytes

    def at(self, number: int) -> bytes:
        """Give one chunk, stamped now."""
        return self.chunk % (number, time.monotonic_ns())


def words(ids: bool) -> Words:
    """Make the words. ids: the client asked for token ids."""
    stream = wire.Wire(True, _ID, _CREATED, MODEL, _FINGERPRINT)
    prompt = list(range(PROMPT_TOKENS)) if ids else None
    mark = _MARK % (0, 0)
    event = stream.content(0, mark, [TOKEN] if ids else None)
    end = stream.content(0, "", [2] if ids else None, finish="stop", last=True)
    said = wire.chat_choice(0, "said" * TOKENS_PER_PLAIN, "stop", None, [TOKEN] * TOKENS_PER_PLAIN if ids else None)
    head = {"id": _ID, "created": _CREATED, "model": MODEL}
    usage = wire.usage(PROMPT_TOKENS, TOKENS_PER_PLAIN)
    return Words(
        opening=wire.HEAD_STREAM + wire.framed(stream.role(0, prompt, None)),
        chunk=wire.framed(event).replace(mark.encode(), _MARK.encode()),
        closing=wire.framed(end) + wire.framed(wire.DONE) + wire.STREAM_END,
        plain=wire.answer(200, wire.plain(True, head, [said], usage, _FINGERPRINT, prompt)),
    )
