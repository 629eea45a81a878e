"""Which requests go on exactly on another server, and what that server is asked for. Pure.

Without help inside vLLM a stream goes on as a completion of its own ids: prompt + emitted. The engine's
state beyond those ids (grammar, sampler noise, parsers) starts afresh, so a request that depends on it
cannot go on exactly; it is refused by the name of the feature rather than continued wrongly.
What is exact was measured over real cuts (docs/failover.md has the table).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gateway.stream.call import Call, Endpoint

LOGIT_BIAS_MAX = 100.0  # vLLM clamps a bias to this, either way

# Sampling fields that mean the same for the rest of a stream as for the whole of it.
CARRIED = (
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "logit_bias",
    "stop_token_ids", "ignore_eos", "allowed_token_ids", "skip_special_tokens", "spaces_between_special_tokens",
    "user", "cache_salt", "priority",
)  # fmt: skip

# Fields that only made the prompt, whose ids are known by now, or that shape the answer's envelope.
SPENT = frozenset((
    "messages", "prompt", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "stop", "min_tokens",
    "include_stop_str_in_output", "return_token_ids", "chat_template", "chat_template_kwargs", "documents",
    "add_generation_prompt", "continue_final_message", "add_special_tokens", "truncate_prompt_tokens",
    "truncation_side", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls", "include_reasoning", "return_prompt_text", "length_penalty", "early_stopping",
))  # fmt: skip

# Fields that are harmless at these values.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tool_choice": ("none",),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
}


def obstacle(call: Call, *, spells_special: bool) -> str | None:
    """Name the feature of a request that cannot go on exactly elsewhere; None if all of it can.

    spells_special: the text will come from a decoder that cannot leave special tokens out.
    """
    body = call.body
    if call.has_media:
        return "media in messages"
    if body.get("tools") and body.get("tool_choice") != "none":
        return "tools"
    if body.get("seed") is not None and not greedy(body):
        return "seed"
    if body.get("frequency_penalty") and (body.get("repetition_penalty") or 1.0) != 1.0:
        return "frequency_penalty with repetition_penalty"  # vLLM scales between bias and penalty: not linear
    if body.get("frequency_penalty") and _crowded(body):
        return "frequency_penalty with this logit_bias"
    if spells_special and call.skip_special and body.get("ignore_eos"):
        return "ignore_eos without a tokenizer in the configuration"
    if body.get("logprobs") == 0 and body["logprobs"] is not False:
        return "logprobs"  # of a completion: 0 still asks for those of the chosen tokens
    for name, value in body.items():
        known = name in CARRIED or name in SPENT or name in ("tools", "seed")
        if not known and value not in (None, False, 0, "", [], {}) and value not in HARMLESS.get(name, ()):
            return name
    return None


def repeats_obstacle(call: Call, ids: Sequence[int]) -> str | None:
    """Name what makes a frequency penalty inexact for these emitted ids: a bias beyond vLLM's clamp."""
    penalty = call.body.get("frequency_penalty") or 0.0
    if not penalty or not ids:
        return None
    bias = _bias(call.body, penalty, ids)
    return "frequency_penalty on a token this frequent" if any(abs(b) > LOGIT_BIAS_MAX for b in bias.values()) else None


def body(call: Call, prompt: Sequence[int], ids: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """What the next server is asked for: go on after `prompt` + `ids`.

    max_tokens: of the whole choice.
    Stop strings stay here: on the new server they would also match in text it leaks (vLLM issue 48853).
    """
    asked = {name: call.body[name] for name in CARRIED if call.body.get(name) is not None}
    asked |= {"prompt": [*prompt, *ids], "stream": True, "return_token_ids": True, "max_tokens": max_tokens - len(ids)}
    asked["stream_options"] = {"include_usage": True}  # it tells how much of all that was in a cache
    if call.min_tokens > len(ids):
        asked["min_tokens"] = call.min_tokens - len(ids)
    penalty = call.body.get("frequency_penalty") or 0.0
    if penalty and ids:
        # The emitted tokens are prompt now, which the penalty does not see. It is linear, so a bias makes up for it.
        asked["logit_bias"] = {str(one): bias for one, bias in _bias(call.body, penalty, ids).items()}
    return asked


def fresh(call: Call, prompt: Any, max_tokens: int | None) -> dict[str, Any]:
    """What is asked for a choice of a completion of which nothing was delivered yet: its own prompt, once.

    Its text is worded here like the others', so stop strings stay here too.
    """
    assert call.endpoint is Endpoint.COMPLETIONS
    asked = {name: value for name, value in call.body.items() if name not in ("stop", "include_stop_str_in_output")}
    return asked | {"prompt": prompt, "n": 1, "stream": True, "return_token_ids": True, "max_tokens": max_tokens}


def greedy(body: dict[str, Any]) -> bool:
    temperature = body.get("temperature")
    return temperature is not None and temperature < 1e-5  # vLLM's own threshold (sampling_params.py)


def _crowded(body: dict[str, Any]) -> bool:
    """Say whether vLLM has clamped a bias already, so that adding to it is no longer linear."""
    return any(abs(bias) > LOGIT_BIAS_MAX for bias in (body.get("logit_bias") or {}).values())


def _bias(body: dict[str, Any], penalty: float, ids: Sequence[int]) -> dict[int, float]:
    bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
    for token, count in Counter(ids).items():
        bias[token] = bias.get(token, 0.0) - penalty * count
    return bias
