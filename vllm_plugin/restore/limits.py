"""What is not continued, by name: fields of requests, and configurations. Pure.

Whatever is not named here was seen to go on exactly on real vLLM: docs/continuing.md. What nobody has tried is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_plugin.refusals import Facts

# Fields of vLLM's sampling parameters, as they are where a request does not set them, and why they are not continued.
FIELDS: Mapping[str, tuple[Any, str]] = {
    "thinking_token_budget": (None, "vLLM does not know again where thinking began"),
    "prompt_logprobs": (None, "they come with the first token, which was given out"),
    "prompt_logprob_token_ids": (None, "they come with the first token, which was given out"),
    "logprob_token_ids": (None, "nobody has tried it"),
    "flat_logprobs": (False, "nobody has tried it"),
    "routed_experts_prompt_start": (0, "nobody has tried it"),
    "trace_decode_token_ids": (None, "nobody has tried it"),
}
# Fields of requests: those above, and what does not come through sampling parameters.
REFUSED = (*FIELDS, "use_beam_search", "prompt_embeds")
UNTRIED = (
    ("v2_runner", "vLLM's V2 runner"),
    ("speculative_decoding", "speculative decoding"),
    ("pipeline_parallel", "pipeline parallelism"),
    ("pooling", "a pooling model"),
    ("own_logits_processors", "logits processors of one's own"),
    ("watermarks", "watermarks"),
)


def why_not_here(facts: Facts, wanted: bool, missing: Sequence[str], others: Sequence[str] = ()) -> str:
    """Why an engine continues nothing, in one line; "" where it does.

    wanted: as the operator said. missing: of what is held on to in vLLM. others: connectors beside Holdfast's.
    """
    if not wanted:
        return '"continue" is false in kv_connector_extra_config'
    if missing:
        return f"this vLLM has no {', '.join(missing)}"
    untried = [words for field, words in UNTRIED if getattr(facts, field)]
    untried += [f"{name} beside it" for name in others]
    return f"nobody has tried it with {', '.join(untried)}" if untried else ""


def refused_field(params: Any, *, whole: bool, seeds: bool) -> tuple[str, str] | None:
    """The first field that these sampling parameters must not have to be continued, and why; None if there is none.

    whole: the answer is not streamed. seeds: whether what seeded requests draw from can be put where it was.
    """
    for name, (usual, why) in FIELDS.items():
        if name == "prompt_logprobs" and not whole:
            continue  # of an echo: its first event is given out again, and dropped by the gateway
        if getattr(params, name, usual) != usual:
            return name, why
    if whole and params.logprobs is not None:
        return "logprobs", "those of tokens that were given out are not known here: stream the answer"
    if not seeds and params.seed is not None and params.temperature:
        return "seed", "what this server's sampler draws from cannot be moved on"
    return None
