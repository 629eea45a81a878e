"""Chunks of our own, in vLLM's shape: what a client reads after a leg was lost or a budget ended."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.stream.call import Call, Endpoint
from gateway.stream.choice import Choice
from gateway.stream.sse import DATA, DONE, END
from gateway.stream.wire import Chunk, event

BUDGET_STOP = "budget_exceeded"  # the stop_reason of an answer that its budget ended


class Wording:
    """Writes events for one stream; keeps the id, the time and the model of its first chunk."""

    __slots__ = (
        "_call", "_chat", "head",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self._call = call
        self._chat = call.endpoint is Endpoint.CHAT
        self.head: Chunk | None = None

    def role(self, choice: Choice) -> bytes:
        """The event that opens a chat choice; nothing for a completion, or when it was sent."""
        if choice.role_sent or not self._chat:
            return b""
        choice.role_sent = True
        body = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return event(self.envelope() | {"choices": [body | {"finish_reason": None}]})

    def text(
        self,
        choice: Choice,
        text: str,
        ids: Sequence[int],
        stop_reason: int | str | None,
        prompt_tokens: int,
        told: dict[str, Any],
    ) -> bytes:
        """One chunk of a choice: its new text and ids, its finish_reason if it has one by now."""
        said: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
        body = {"index": choice.index, **said, "logprobs": None, "finish_reason": choice.finish_reason}
        if choice.finish_reason is not None or not self._chat:
            body["stop_reason"] = stop_reason
        body["token_ids"] = list(ids) if self._call.wants_ids else None
        chunk = self.envelope() | {"choices": [body]} | told
        if self._call.continuous_usage:
            chunk["usage"] = _usage(prompt_tokens, len(choice.ids))
        return self.role(choice) + event(chunk)

    def usage(self, prompt_tokens: int, completion_tokens: int, told: dict[str, Any]) -> bytes:
        """The last chunk: usage over all legs, each token counted once."""
        usage = _usage(prompt_tokens, completion_tokens)
        return event(self.envelope() | {"choices": [], "usage": usage} | told)

    def last(
        self, raw: bytes, prompt_tokens: int, completion_tokens: int, tale: dict[str, Any]
    ) -> bytes:
        """The same in the words of the server that told the end: but what it had cached is what we sent it again."""
        try:
            body: dict[str, Any] = msgspec.json.decode(raw[len(DATA) :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # of what the gateway has no need to read
            return self.usage(prompt_tokens, completion_tokens, tale)
        usage = body["usage"] | _usage(prompt_tokens, completion_tokens)
        usage.pop("prompt_tokens_details", None)
        return event(body | {"usage": usage} | tale)

    @staticmethod
    def error(detail: str, code: str) -> bytes:
        """The event that ends a stream that broke. No [DONE] follows: clients take that for success."""
        return event({"error": {"message": detail, "type": "server_error", "param": None, "code": code}})

    @staticmethod
    def done() -> bytes:
        return DONE + END

    def envelope(self) -> dict[str, Any]:
        """What all chunks begin with, in vLLM's order."""
        head = self.head or Chunk(id=self._call.request_id, model=self._call.model)
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {"id": head.id, "object": kind, "created": head.created, "model": head.model}


def told(failovers: int, pauses_s: Sequence[float], *, ended_by: str | None) -> dict[str, Any]:
    """What is known only at the end, and rides in the last chunk where there is something to tell."""
    tale: dict[str, Any] = {}
    if failovers:
        tale |= {"failovers": failovers, "gap_ms": round(max(pauses_s, default=0.0) * 1e3, 1)}
    if ended_by is not None:
        tale["ended_by"] = ended_by
    return {"holdfast": tale} if tale else {}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
