"""vLLM's stream events: read what a meter needs, take out what only the gateway asked for, write our own.

Decoding is typed and partial (msgspec): about two microseconds a chunk. Forwarding is by bytes; a chunk
is decoded and encoded again only when its bytes are not what vLLM writes.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.stream.sse import CR, DATA, END, LF

TokenIds = list[Annotated[int, Meta(ge=0, lt=1 << 31)]]


class Delta(Struct, gc=False):
    """What a chat chunk adds. Anything beyond plain content is kept only to be noticed."""

    role: str | None = None
    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None

    @property
    def beyond_text(self) -> str | None:
        """Name the feature that made this delta more than text, if one did."""
        if self.tool_calls or self.function_call:
            return "tools"
        if self.reasoning or self.reasoning_content:
            return "reasoning"
        return "refusal" if self.refusal else None

    @property
    def apart(self) -> str:
        """What it adds beside content: reasoning, and names and arguments of tools, as one text. Ids are not in it."""
        said = [self.reasoning or self.reasoning_content, self.refusal]
        for call in self.tool_calls if isinstance(self.tool_calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            said += [function.get("name"), function.get("arguments")] if isinstance(function, dict) else []
        return "".join(one for one in said if isinstance(one, str))


class ChunkChoice(Struct, gc=False):
    """One choice of one chunk, chat or completion."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    token_ids: TokenIds | None = None
    prompt_token_ids: TokenIds | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def content(self) -> str:
        """The text this chunk adds."""
        return (self.delta.content if self.delta else self.text) or ""


class Usage(Struct, gc=False):
    """vLLM's own count, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None

    @property
    def cached(self) -> int:
        """Input tokens that were in a cache; vLLM tells them with --enable-prompt-tokens-details only."""
        return _detail(self.prompt_tokens_details, "cached_tokens")

    @property
    def reasoning(self) -> int:
        """Output tokens that were reasoning, where they are told."""
        return _detail(self.completion_tokens_details, "reasoning_tokens")


def _detail(details: Any, name: str) -> int:
    told = details.get(name) if isinstance(details, dict) else None
    return max(0, told) if type(told) is int else 0


class UpstreamError(Struct, gc=False):
    """The error body of vLLM, whose `code` is an HTTP status as a number."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: int | str | None = None

    @property
    def status(self) -> int:
        """The HTTP status that vLLM meant; 500 where it did not say."""
        return self.code if isinstance(self.code, int) and 400 <= self.code <= 599 else 500


class Chunk(Struct, gc=False):
    """One event of a stream."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = []
    prompt_token_ids: TokenIds | None = None
    system_fingerprint: Any = None
    usage: Usage | None = None
    error: UpstreamError | None = None


def head_of(chunk: Chunk) -> Chunk:
    """What is the same in all chunks of a stream. Its prompt's ids are not kept with it."""
    return Chunk(chunk.id, chunk.created, chunk.model, system_fingerprint=chunk.system_fingerprint)


decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_usage = msgspec.json.Decoder(Usage).decode
encode = msgspec.json.encode
DETAIL = re.compile(rb'_details"\s*:\s*\{')
_IDS = (b',"token_ids":[', b',"prompt_token_ids":[')
NOTHING: Mapping[str, Any] = {}


def details(usage: Raw) -> tuple[int, int]:
    """Read the cached and the reasoning tokens of a usage; none where it tells none, or is odd."""
    if DETAIL.search(usage) is None:  # as most
        return 0, 0
    try:
        said = _decode_usage(usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0, 0
    return said.cached, said.reasoning


def read(raw: bytes) -> Chunk | None:
    """Decode an event; None where it is none of vLLM's, which has one line of JSON."""
    if LF in raw or CR in raw:
        return None
    try:
        return decode_chunk(memoryview(raw)[len(DATA) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def event(payload: Any) -> bytes:
    """Write one event."""
    return DATA + encode(payload) + END


def without_ids(raw: bytes, *, has_ids: bool) -> bytes:
    """Take the token ids out of an event, leaving what vLLM sends to who did not ask for them: null.

    An unescaped quote cannot occur inside a JSON string, so the pattern cannot be the client's text.
    has_ids: it is known to have some; where they are not found as vLLM writes them, they are taken out the dear way.
    """
    for name in _IDS:
        start = raw.rfind(name)  # they stand at the end
        if start >= 0:
            end = raw.index(b"]", start)
            raw, has_ids = raw[: start + len(name) - 1] + b"null" + raw[end + 1 :], False
    return rewritten(raw, drop_ids=True) if has_ids else raw


def bare(answer: bytes, lists: int) -> bytes:
    """Take the token ids out of a plain answer in the same way. lists: of ids, in all of it."""
    found = 0
    for name in _IDS:
        start = answer.find(name)
        while start >= 0:
            end = answer.index(b"]", start)
            answer = answer[: start + len(name) - 1] + b"null" + answer[end + 1 :]
            start, found = answer.find(name, start), found + 1
    if found == lists:
        return answer
    body = msgspec.json.decode(answer)
    clear_ids(body)
    return encode(body)


def count(ids: Raw) -> int | None:
    """Count token ids without making numbers of them; None where they are not a list of numbers from 0."""
    raw = bytes(ids)
    if raw.translate(None, b"0123456789, \n\r\t") != b"[]":
        return None
    return raw.count(b",") + 1 if raw.strip(b"[] \n\r\t") else 0


def rewritten(
    raw: bytes,
    *,
    drop_ids: bool,
    stop_reason: str | None = None,
    drop_reasoning: bool = False,
    more: Mapping[str, Any] = NOTHING,
) -> bytes:
    """Decode and encode an event: for bytes that are not vLLM's usual ones. Some 15 times dearer.

    more: fields that it gets.
    """
    body = msgspec.json.decode(raw[len(DATA) :]) | more
    if drop_ids:
        clear_ids(body)
    for choice in body.get("choices", ()):
        if stop_reason is not None:
            choice["stop_reason"] = stop_reason
        if drop_reasoning:
            clear_reasoning(choice.get("delta"))
    return DATA + encode(body)


def renumbered(raw: bytes, index: int, wanted: int) -> bytes:
    """Give the choice of an event another number: of a leg that brings some of the client's choices."""
    said = b'"choices":[{"index":%d,'
    if (found := raw.find(said % index)) >= 0:
        return raw[:found] + said % wanted + raw[found + len(said % index) :]
    body = msgspec.json.decode(raw[len(DATA) :])
    body["choices"][0]["index"] = wanted
    return DATA + encode(body)


def clear_ids(body: dict[str, Any]) -> None:
    """Blank the token ids of a decoded chunk or plain answer."""
    for part in (body, *body.get("choices", ())):
        for name in ("token_ids", "prompt_token_ids"):
            if part.get(name) is not None:
                part[name] = None


def clear_reasoning(message: object) -> None:
    """Take the reasoning out of a delta or message, for a client that asked for none."""
    if not isinstance(message, dict):
        return
    for name in ("reasoning", "reasoning_content"):
        message.pop(name, None)
