"""One request to the stub, read and checked as vLLM 0.32 reads and checks it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from loadtests.stub_orders import order_in_text
from loadtests.stub_tokenizer import ASSISTANT, BOS, SYSTEM, USER, decode_bytes, encode, encode_ordinary

COMPLETION_TOKENS_DEFAULT = 16
_BRACKET = ord("[")  # a prompt of ids without this byte cannot hold an order
_ROLES = {"system": SYSTEM, "developer": SYSTEM, "assistant": ASSISTANT}


class Refusal(Exception):
    """An answer of status 400 or above, in vLLM's words."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, kind, param)


class _StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Body(Struct):
    """The fields that the stub obeys; all others are accepted and ignored."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None
    seed: int | None = None
    vllm_xargs: dict[str, Any] | None = None
    stub: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """What to answer: one list of ids per prompt, and the limits of each choice."""

    chat: bool
    prompts: list[list[int]]
    max_tokens: list[int]
    choices: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    ids: bool
    stops: tuple[str, ...]
    keep_stop: bool
    stop_ids: frozenset[int]
    min_tokens: int
    ignore_eos: bool
    echoes: list[str] | None
    order: dict[str, Any] | None
    noise: int | None = None  # a seed, where it makes a difference
    again: list[list[list[int]]] | None = None  # what each choice has said elsewhere, event by event


def read_body(data: bytes) -> Body:
    """Decode a body; raises Refusal in the words of vLLM's validation."""
    try:
        return msgspec.json.decode(data, type=Body)
    except msgspec.ValidationError as error:
        text = str(error)
        place = "body" + (text.rsplit("`$", 1)[1].rstrip("`") if "`$" in text else "")
        detail = f"1 validation error:\n  {{'type': 'invalid', 'loc': '{place}', 'msg': {text!r}}}"
        raise Refusal(400, detail, "Bad Request", place) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(data) from error


def ask(body: Body, chat: bool, model: str, vocab: int, window: int, *, replays: bool = False) -> Asked:
    """Turn a body into what is to be said; raises Refusal. replays: it has a plugin that continues streams."""
    if body.model is not None and body.model != model:
        said = f"The model `{body.model}` does not exist. Valid aliases: {model}."
        raise Refusal(404, said, "NotFoundError", "model")
    if body.stream_options is not None and not body.stream:
        _bad("Stream options can only be defined when `stream=True`. (parameter=stream_options)", "stream_options")
    prompts = [chat_ids(body.messages, vocab)] if chat else _prompts(body.prompt, vocab)
    choices = _choices(body)
    wanted = body.max_completion_tokens if chat and body.max_completion_tokens is not None else body.max_tokens
    options = body.stream_options or _StreamOptions()
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Asked(
        chat=chat,
        prompts=prompts,
        max_tokens=[_room(len(prompt), wanted, chat, window) for prompt in prompts],
        choices=choices,
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        ids=bool(body.return_token_ids),
        stops=tuple(stop for stop in stops if stop),
        keep_stop=bool(body.include_stop_str_in_output),
        stop_ids=frozenset(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        echoes=[decode_bytes(ids, vocab).decode("utf-8", "replace") for ids in prompts] if body.echo else None,
        order=body.stub if body.stub is not None else _order(body, prompts, vocab),
        noise=None if body.temperature == 0 else body.seed,
        again=_again(body, choices, len(prompts), vocab) if replays else None,
    )


def chat_ids(messages: list[dict[str, Any]] | None, vocab: int) -> list[int]:
    """Render a conversation: a marker for each role, its content, and the assistant's marker last."""
    if messages is None:
        said = "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required'}"
        raise Refusal(400, said, "Bad Request", "body.messages")
    ids = [BOS]
    for message in messages:
        ids.append(_ROLES.get(str(message.get("role")), USER))
        ids += encode_ordinary(_content(message), vocab)
    return [*ids, ASSISTANT]


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """Give the body of vLLM's error answers."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def _not_json(data: bytes) -> Refusal:
    place, said = 0, "Invalid JSON"
    try:
        json.loads(data)
    except UnicodeDecodeError:
        pass
    except ValueError as error:
        place, said = getattr(error, "pos", 0), getattr(error, "msg", said)
    detail = (
        f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{place}', 'msg': 'JSON decode error', "
        f"'input': '<dict of 0 items>', 'ctx': {{'error': '{said}'}}}}"
    )
    return Refusal(400, detail, "Bad Request", f"body.{place}")


def _bad(message: str, param: str | None = None) -> None:
    raise Refusal(400, message, param=param)


def _choices(body: Body) -> int:
    choices = 1 if body.n is None else body.n
    if choices < 1:
        _bad(f"n must be at least 1, got {choices}.")
    if choices > 1 and body.temperature == 0:
        _bad(f"n must be 1 when using greedy sampling, got {choices}.")
    return choices


def _room(prompt: int, wanted: int | None, chat: bool, window: int) -> int:
    if prompt > window:
        _bad(
            f"This model's maximum context length is {window} tokens. However, your prompt contains at least "
            f"{window + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce "
            f"the length of the input prompt. (parameter=input_tokens, value={window + 1})",
            "input_tokens",
        )
    if wanted is not None and wanted > window:
        _bad(
            f"max_tokens={wanted} cannot be greater than max_model_len={window}. Please request fewer output "
            f"tokens. (parameter=max_tokens, value={wanted})",
            "max_tokens",
        )
    # vLLM does not refuse what fits neither way: it says fewer tokens, up to the end of the window.
    room = window - prompt
    tokens = min(room, wanted if wanted is not None else room if chat else COMPLETION_TOKENS_DEFAULT)
    if tokens < 1:
        _bad(f"max_tokens must be at least 1, got {tokens}. (parameter=max_tokens, value={tokens})", "max_tokens")
    return tokens


def _prompts(prompt: Any, vocab: int) -> list[list[int]]:
    if prompt is None or prompt == "":
        _bad("Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt")
    if isinstance(prompt, str):
        return [encode(prompt, vocab)]
    if not isinstance(prompt, list) or not prompt:
        _bad("You must pass at least one prompt")
    if isinstance(prompt[0], int):
        return [_checked(prompt, vocab)]
    return [encode(one, vocab) if isinstance(one, str) else _checked(one, vocab) for one in prompt]


def _checked(ids: Any, vocab: int) -> list[int]:
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        _bad("You must pass at least one prompt")
    for token in (min(ids), max(ids)):
        if not 0 <= token < vocab:
            _bad(f"Token id {token} is out of vocabulary")
    return list(ids)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _again(body: Body, choices: int, prompts: int, vocab: int) -> list[list[list[int]]] | None:
    """Read what is to be replayed, as Holdfast's plugin does."""
    said = (body.vllm_xargs or {}).get("holdfast_resume")
    if said is None:
        return None
    try:
        found = msgspec.json.decode(said, type=list[list[list[int]]])
    except (msgspec.DecodeError, TypeError):
        found = []
    ids = [one for chunks in found for chunk in chunks for one in chunk]
    if len(found) != choices or prompts != 1 or not all(0 <= one < vocab for one in ids):
        _bad("one list of events of token ids for each choice of one prompt", "vllm_xargs.holdfast_resume")
    return found


def _order(body: Body, prompts: Sequence[list[int]], vocab: int) -> dict[str, Any] | None:
    for ids in prompts:
        # Decoded from the ids, so that a continuation, which has no text, obeys the same order.
        if ids.count(_BRACKET) >= 2 and (order := order_in_text(decode_bytes(ids, vocab).decode("utf-8", "replace"))):
            return order
    return None
