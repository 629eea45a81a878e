"""The bytes of vLLM 0.32's answers: field order, separators and nulls as recorded from a real server."""

from collections.abc import Sequence
from typing import Any

import msgspec

HEAD_STREAM = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"vary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"
STREAM_END = b"0\r\n\r\n"
# vLLM writes this event with json.dumps, blanks after the separators included.
INTERNAL_ERROR = (
    b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", '
    b'"param": null, "code": 500}}\n\n'
)
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable",
}  # fmt: skip

encode = msgspec.json.encode


def answer(status: int, body: bytes, kind: bytes = b"application/json") -> bytes:
    """Give a whole plain answer."""
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Other')}\r\nserver: uvicorn\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: " + kind + b"\r\nvary: Origin\r\n\r\n" + body


def framed(event: bytes) -> bytes:
    """Give one event as one HTTP chunk, as uvicorn writes it."""
    return b"%x\r\n%b\r\n" % (len(event), event)


def padded(said: bytes, pad: int) -> bytes:
    """Make an event or a plain answer longer by a field that nobody knows, of so many bytes."""
    end = said.rindex(b"}")
    return said[:end] + b',"pad":"' + b"x" * pad + b'"' + said[end:] if pad else said


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """Count tokens, in vLLM's field order. cached: of the prompt, told where there are any."""
    counted: dict[str, Any] = {
        "prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion,
    }  # fmt: skip
    return counted | {"prompt_tokens_details": {"cached_tokens": cached}} if cached else counted


class Wire:
    """The events of one stream, from parts that are encoded once."""

    def __init__(self, chat: bool, answer_id: str, created: int, model: str, fingerprint: str) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        start = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._chat = chat
        self._start = b"data: " + encode(start)[:-1] + b',"choices":['
        self._fingerprint = b',"system_fingerprint":' + encode(fingerprint)

    def role(self, choice: int, prompt_ids: Sequence[int] | None, counted: dict[str, Any] | None) -> bytes:
        """Give the first event of a chat's choice."""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        prompt = b',"prompt_token_ids":%b,"prompt_text":null' % encode(prompt_ids)
        told = b"" if counted is None else self._counted(counted)
        return b'%b{"index":%d,%b}]%b%b}\n\n' % (self._start, choice, delta, told, prompt)

    def content(
        self,
        choice: int,
        text: str,
        ids: Sequence[int] | None,
        *,
        with_ids: bool = True,
        prompt_ids: Sequence[int] | None = None,
        finish: str | None = None,
        stop: str | int | None = None,
        counted: dict[str, Any] | None = None,
        last: bool = False,
    ) -> bytes:
        """Give an event that carries tokens.

        with_ids: whether the fields for ids are there at all; last: stamp the fingerprint on it.
        """
        # Never both: the fingerprint goes to the very last event, which with usage is the usage.
        tail = self._fingerprint if last else b"" if counted is None else self._counted(counted)
        said = b"null" if finish is None else encode(finish)
        if self._chat:
            shown = b',"token_ids":' + encode(ids) if with_ids else b""
            reason = b"" if finish is None else b',"stop_reason":' + encode(stop)
            return b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":%b%b%b}]%b}\n\n' % (
                self._start, choice, encode(text), said, reason, shown, tail,
            )  # fmt: skip
        shown = b',"prompt_token_ids":%b,"token_ids":%b' % (encode(prompt_ids), encode(ids)) if with_ids else b""
        return b'%b{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b%b}]%b}\n\n' % (
            self._start, choice, encode(text), said, encode(stop), shown, tail,
        )  # fmt: skip

    def total(self, counted: dict[str, Any]) -> bytes:
        """Give the event that carries the usage of the whole answer."""
        return b'%b],"usage":%b%b}\n\n' % (self._start, encode(counted), self._fingerprint)

    def _counted(self, counted: dict[str, Any]) -> bytes:
        if self._chat:
            counted = {**counted, "completion_tokens_details": None}
        return b',"usage":' + encode(counted)


def chat_choice(index: int, text: str, finish: str, stop: str | int | None, ids: list[int] | None) -> dict[str, Any]:
    """Give one choice of a plain chat answer."""
    message = {
        "role": "assistant", "content": text, "refusal": None, "annotations": None,
        "audio": None, "function_call": None, "reasoning": None,
    }  # fmt: skip
    return {
        "index": index, "message": message, "logprobs": None, "finish_reason": finish,
        "stop_reason": stop, "token_ids": ids, "routed_experts": None,
    }  # fmt: skip


def text_choice(
    index: int, text: str, finish: str, stop: str | int | None, ids: list[int] | None, prompt_ids: list[int] | None
) -> dict[str, Any]:
    """Give one choice of a plain completion."""
    return {
        "index": index, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": stop,
        "token_ids": ids, "prompt_logprobs": None, "prompt_token_ids": prompt_ids, "routed_experts": None,
    }  # fmt: skip


def plain(
    chat: bool,
    head: dict[str, Any],
    choices: list[dict[str, Any]],
    counted: dict[str, Any] | None,
    fingerprint: str,
    prompt_ids: list[int] | None,
) -> bytes:
    """Give the body of a plain answer. head: id, created and model; counted: None leaves usage out."""
    body = {"id": head["id"], "object": "chat.completion" if chat else "text_completion"}
    body |= {"created": head["created"], "model": head["model"], "choices": choices}
    body |= {"service_tier": None, "system_fingerprint": fingerprint}
    if counted is not None:
        details = {"prompt_tokens_details": counted.get("prompt_tokens_details"), "completion_tokens_details": None}
        body["usage"] = counted | details
    if chat:
        body |= {"prompt_logprobs": None, "prompt_token_ids": prompt_ids, "prompt_text": None}
    return encode(body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})
