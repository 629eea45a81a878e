"""One client request, parsed and checked: what the gateway relies on, and nothing more.

What describes the generation is passed on unchanged; vLLM checks it. Checked here is only what a
budget, a continuation or the fleet depends on. Fields that steer the engine are the gateway's own:
those that could do harm are refused, those that clients send innocently are dropped.
"""

import re
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from guards.estimate import prompt_bound
from guards.refusal import Reason, Refused

# Sent innocently by clients, yet they steer the engine: queues, ids, cache salts, how long a stream is silent.
DROPPED = ("priority", "cache_salt", "request_id", "session_id", "stream_interval")
# Could name hosts, inject engine state or hide the tokens that a budget counts.
FORBIDDEN = ("kv_transfer_params", "ec_transfer_params", "prompt_embeds", "mm_payload", "routed_experts_prompt_start")
STEERING = frozenset((*DROPPED, *FORBIDDEN))
TEXT_TYPES = ("text", "refusal", "thinking", "input_text", "output_text")  # of a message's content part
XARG_PREFIXES = ("holdfast", "kv_", "ec_")  # our own, and what vLLM reads as the fields above
TOKEN_ID = re.compile(r"[0-9]{1,10}")
SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
TOKENS_COMPLETION_DEFAULT = 16  # OpenAI's and vLLM's default for /v1/completions

Count = Annotated[int, Meta(ge=1, le=1 << 31)]


class Endpoint(StrEnum):
    """The two ways to ask for tokens; the value is the path, on both sides of the gateway."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


class Bounds(Struct, frozen=True):
    """What one request may ask for at most; from `limits` in the configuration."""

    choices: int = 16
    prompts: int = 64
    stop_strings: int = 16
    media_urls: bool = False
    agent_depth: int = 8
    agent_share: int = 50  # percent of its parent's limits, that an agent has


class _StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Common(Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Count | None = None
    max_tokens: Count | None = None
    stop: str | list[str] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    include_reasoning: bool | None = None
    vllm_xargs: dict[str, Any] | None = None


class _Chat(_Common, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None


class _Completion(_Common, kw_only=True):
    prompt: str | list[Any]
    best_of: int | None = None


class Call:
    """A parsed request.

    body: what goes upstream, as the client said it, less the fields a client may not say.
    choices: how many answers the client waits for: `n` for each prompt.
    prompts: one entry per prompt; for chat a single None, since the template makes the prompt.
    max_tokens: per choice, as the client asked; None where it left that to the model.
    session, agent: the client's own names, which it says in headers.
    asked_s: until its first token, as the client would have it, in seconds; None where it does not say.
    near: what it has in common with other requests, as a number for routing; None where it has nothing.
    home: the replica that has what was computed for it before, as far as is known; for routing, too.
    ahead: tokens, of all choices together, that were loaded where it goes next before it went there.
    """

    __slots__ = (
        "agent", "ahead", "asked_s", "body", "body_bytes", "choices", "continuous_usage", "endpoint", "has_media",
        "hides_reasoning", "home", "include_stop", "include_usage", "max_tokens", "messages", "min_tokens", "model",
        "n", "near", "prompt_bound", "prompts", "request_id", "session", "skip_special", "stop", "stream", "wants_ids",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, raw: bytes, request_id: str, bounds: Bounds) -> None:
        """Parse `raw`. Raises Refused (INVALID) naming the field at fault."""
        self.endpoint, self.request_id, self.body_bytes = endpoint, request_id, len(raw)
        self.session: str | None = None
        self.agent: str | None = None
        self.near: int | None = None
        self.home: str | None = None
        self.ahead = 0
        self.asked_s: float | None = None
        self.body = _json_object(raw)
        if not STEERING.isdisjoint(self.body):
            _disarm(self.body)
        said = _convert(self.body, endpoint)
        if said.vllm_xargs:
            _refuse_forbidden(said.vllm_xargs)
        self.model = said.model
        self.stream = bool(said.stream)
        options = said.stream_options or _StreamOptions()
        self.include_usage = bool(options.include_usage)
        self.continuous_usage = self.include_usage and bool(options.continuous_usage_stats)
        self.n = said.n or 1
        self.stop = (said.stop,) if isinstance(said.stop, str) else tuple(said.stop or ())
        self.include_stop = bool(said.include_stop_str_in_output)
        self.skip_special = said.skip_special_tokens is not False
        self.min_tokens = said.min_tokens or 0
        self.wants_ids = bool(said.return_token_ids)
        self.hides_reasoning = said.include_reasoning is False
        self.messages = len(said.messages) if isinstance(said, _Chat) else 0
        self.has_media = isinstance(said, _Chat) and _media(said.messages, bounds.media_urls)
        self.prompts: list[Any] = [None] if isinstance(said, _Chat) else _prompts(said)
        self.max_tokens = said.max_tokens
        if isinstance(said, _Chat):
            self.max_tokens = said.max_completion_tokens or said.max_tokens
        elif self.max_tokens is None:  # a null counts as left out, in vLLM too
            self.max_tokens = TOKENS_COMPLETION_DEFAULT
        self.choices = self.n * len(self.prompts)
        self.prompt_bound = prompt_bound(len(raw), self.messages, len(self.prompts))
        self._check(bounds)

    def upstream_body(self, max_tokens: int | None) -> dict[str, Any]:
        """The request as a server gets it: the client's, with the ids asked for and `max_tokens` if one is given."""
        body = self.body | {"return_token_ids": True}
        if self.hides_reasoning:
            body["include_reasoning"] = True  # else vLLM leaves out the ids of what it hides; it is hidden here
        if max_tokens is not None:
            body.pop("max_completion_tokens", None)
            body["max_tokens"] = max_tokens
        return body

    def _check(self, bounds: Bounds) -> None:
        if len(self.prompts) > bounds.prompts:
            raise _invalid(f"At most {bounds.prompts} prompts may be sent in one request.", "prompt")
        if self.n > bounds.choices:
            raise _invalid(f"n may be at most {bounds.choices}.", "n")
        if self.choices > max(bounds.choices, bounds.prompts):  # each is a leg of its own once a server was lost
            raise _invalid(f"n times the prompts may be at most {max(bounds.choices, bounds.prompts)}.", "n")
        biases = self.body.get("logit_bias")
        if biases and not all(map(TOKEN_ID.fullmatch, biases)):
            raise _invalid("logit_bias takes token ids as its keys.", "logit_bias")
        if len(self.stop) > bounds.stop_strings or "" in self.stop:
            raise _invalid(f"stop takes at most {bounds.stop_strings} strings, none of them empty.", "stop")


def _invalid(detail: str, param: str | None = None) -> Refused:
    return Refused(Reason.INVALID, detail, param=param)


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"The request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise _invalid("The request body must be a JSON object.")
    return body


def _convert(body: dict[str, Any], endpoint: Endpoint) -> "_Chat | _Completion":
    try:
        if endpoint is Endpoint.CHAT:
            return msgspec.convert(body, _Chat)
        return msgspec.convert(body, _Completion)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        missing = message.partition("missing required field `")[2].rstrip("`")
        param = missing or path.strip("`").lstrip(".").partition("[")[0] or None
        raise _invalid(f"{param}: {message}" if param else message, param) from None


def _disarm(body: dict[str, Any]) -> None:
    """Drop what steers the engine, or refuse it."""
    for name in DROPPED:
        body.pop(name, None)
    for name in FORBIDDEN:
        if body.pop(name, None) is not None:
            raise _invalid(f"{name} steers the engine and may not be set by clients.", name)


def _refuse_forbidden(xargs: dict[str, Any]) -> None:
    for name in xargs:
        if name.startswith(XARG_PREFIXES) or name in FORBIDDEN or name in DROPPED:
            raise _invalid(f"vllm_xargs.{name} steers the engine and may not be set by clients.", "vllm_xargs")


def _prompts(said: _Completion) -> list[Any]:
    """List the prompts: a string or a list of token ids is one, a list of either is many."""
    prompt = said.prompt
    if isinstance(prompt, str) or _is_ids(prompt):
        return [prompt]
    if not prompt or not all(isinstance(one, str) or _is_ids(one) for one in prompt):
        raise _invalid("prompt must be a string, a list of strings, token ids, or a list of token ids.", "prompt")
    return list(prompt)


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(one) is int and 0 <= one < 1 << 31 for one in prompt)


def _media(messages: list[dict[str, Any]], urls_allowed: bool) -> bool:
    """Say whether any message carries more than text; refuse media that the server would fetch."""
    found = False
    for number, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if _is_text(part):
                continue
            found = True
            if not urls_allowed and _names_a_url(part):
                where = f"messages[{number}]"
                raise _invalid(f"{where}: media by URL is not allowed here; send a data: URL instead.", "messages")
    return found


def _is_text(part: Any) -> bool:
    """Say whether vLLM takes a content part for text alone.

    It goes by the type, but by the other fields where there is no type, or a uuid (renderers/chat_utils.py).
    """
    if not isinstance(part, dict):
        return True
    if part.get("type") is None:
        return part.keys() <= {"type", "text"}
    return part["type"] in TEXT_TYPES and part.get("uuid") is None


def _names_a_url(part: Any) -> bool:
    """Say whether any string inside a content part is an address to fetch: it has a scheme, and not data:."""
    left = [part]
    while left:
        one = left.pop()
        if isinstance(one, str):
            scheme = SCHEME.match(one)
            if (scheme is not None and scheme[1].lower() != "data") or (scheme is None and "://" in one):
                return True
        else:
            left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return False
