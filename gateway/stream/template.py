"""What the chunks of one leg have in common, so that the next ones need not be decoded.

vLLM writes all chunks of a stream alike but for their text and their token ids. Once one was decoded, another whose
other bytes are the same means the same, and only those two are read: less than half the work, where every chunk finds
the processor's caches cold.
"""

import re
from typing import Annotated

import msgspec

from gateway.stream.sse import CR, LF
from gateway.stream.wire import Chunk, ChunkChoice, Delta, TokenIds

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_IDS = b',"token_ids":'
_text = msgspec.json.Decoder(str).decode
_ids = msgspec.json.Decoder(Annotated[TokenIds, msgspec.Meta(min_length=1)]).decode


Usual = tuple[str, list[int], bytes]


class Template:
    """The bytes of a chunk before its text, between text and ids, and after them; quotes and brackets not included."""

    __slots__ = ("_bare_end", "_between", "_head", "_start", "_tail")

    def __init__(self, head: bytes, between: bytes, tail: bytes) -> None:
        self._head, self._between, self._tail = head, b'"' + between, tail
        self._start = len(head)
        self._bare_end = b"null" + tail

    def read(self, raw: bytes) -> Usual | None:
        """Read an event of this shape: its text, its ids, and its bytes without the ids; None for one of another.

        An unescaped quote cannot occur inside a JSON string, so what lies between the text's quotes is found right,
        or is no string. Line breaks, which JSON allows between its parts, would break the client's event.
        """
        if LF in raw or CR in raw:
            return None
        end = raw.find(self._between, self._start)
        if end < 0 or not raw.startswith(self._head) or not raw.endswith(self._tail):
            return None
        ids_at = end + len(self._between)
        try:
            text, ids = _text(raw[self._start : end + 1]), _ids(raw[ids_at : len(raw) - len(self._tail)])
            return text, ids, raw[:ids_at] + self._bare_end
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def learnt(raw: bytes, chunk: Chunk) -> Template | None:
    """Make a template of an event that was decoded to this; None where it brings more than text and ids."""
    (said,) = chunk.choices
    if chunk.usage or chunk.error or chunk.prompt_token_ids is not None or not said.token_ids or not _only_text(said):
        return None
    key = b'"text"' if said.delta is None else b'"content"'
    if raw.count(key) != 1 or raw.count(b'"token_ids"') != 1:
        return None  # which of them was read is not known
    start, ids_at = raw.find(key) + len(key) + 1, raw.find(_IDS) + len(_IDS)
    string = _STRING.match(raw, start)
    if string is None or string.end() > ids_at or b"\\" in raw[:start] + raw[string.end() :]:
        return None  # with escapes a name may be written in other ways
    template = Template(raw[:start], raw[string.end() : ids_at], raw[raw.index(b"]", ids_at) + 1 :])
    usual = template.read(raw)
    return template if usual is not None and usual[:2] == (said.content, said.token_ids) else None


def _only_text(said: ChunkChoice) -> bool:
    ended = said.finish_reason is not None or said.stop_reason is not None or said.prompt_token_ids is not None
    if said.delta is None:
        return not ended and said.text is not None
    return not ended and said.delta == Delta(content=said.delta.content) and said.delta.content is not None
