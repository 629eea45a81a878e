"""What vLLM's configs say that changes pages. Only here are their attributes' names known; vLLM is not imported.

An attribute that a version does not have is ABSENT in the facts, and so in the fingerprint: a version that moves it
elsewhere makes another fingerprint, not silently the same one with less behind it.
"""

from collections.abc import Mapping
from typing import Any

from vllm_plugin.fingerprint.facts import ABSENT
from vllm_plugin.fingerprint.tokenizer import tokenizer_facts

# section -> config of vLLM's -> its attributes. "*": all that it has.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {
        "model_config": (
            "dtype", "max_model_len", "disable_sliding_window", "model_impl", "runner", "convert",
            "enable_prompt_embeds",
        ),
    },
    "quantization": {"model_config": ("quantization", "quantization_config")},
    "attention": {"attention_config": ("*",), "cache_config": ("sliding_window", "swa_bounded_replay")},
    "kv cache": {
        "cache_config": (
            "block_size", "hash_block_size", "cache_dtype", "calculate_kv_scales", "kv_cache_dtype_skip_layers",
            "mamba_block_size", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_cache_mode",
            "kv_sharing_fast_prefill",
        ),
    },
    # Data-parallel replicas hold the same weights, and one may use the other's pages: they are not in.
    "topology": {
        "parallel_config": (
            "tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size",
            "decode_context_parallel_size", "cp_kv_cache_interleave_size", "dcp_kv_cache_interleave_size",
            "dcp_q_replicate", "enable_expert_parallel",
        ),
    },
    "lora": {"lora_config": ("lora_dtype", "fully_sharded_loras", "enable_tower_connector_lora")},
    "draft": {"speculative_config": ("method", "quantization", "kv_cache_dtype", "attention_backend")},
}  # fmt: skip
# Of a Hugging Face config: where it was found, and by whom it was written.
INCIDENTAL = ("_name_or_path", "transformers_version", "name_or_path")
ROPE = ("rope_", "rotary", "partial_rotary", "mrope", "original_max_position", "max_position")
QUANTIZED = ("quant",)


def facts_of(vllm_config: Any, *, engine: str, kv_form: str, tokenizer: Any | None) -> dict[str, Any]:
    """The facts of an engine, by section: alike on all its ranks.

    engine: vLLM's version, as between versions kernels and the order of packed weights change. kv_form: what pages are
        as they are stored, on all ranks: `Pages.form` where that is logical order, else the layout as well. tokenizer:
        the one that the engine uses, see `tokenizer_facts`.

    Raises FactRefused, when packed, for a value of a config that is none.
    """
    facts: dict[str, Any] = {"engine": {"version": engine}, "tokenizer": tokenizer_facts(tokenizer)}
    for section, configs in ATTRIBUTES.items():
        facts[section] = {
            f"{name}.{key}": value
            for name, keys in configs.items()
            for key, value in _attributes(getattr(vllm_config, name, ABSENT), keys).items()
        }
    facts["kv cache"]["form"] = kv_form
    model = getattr(vllm_config, "model_config", ABSENT)
    said = _hugging_face(getattr(model, "hf_config", ABSENT))
    facts["rope"] = _where(said, ROPE)
    facts["quantization"]["config"] = _where(said, QUANTIZED)
    facts["architecture"] = said
    draft = getattr(getattr(vllm_config, "speculative_config", None), "draft_model_config", ABSENT)
    facts["draft"]["config"] = _hugging_face(getattr(draft, "hf_config", ABSENT))
    return facts


def _attributes(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Some attributes of a config; of a config that is None, or that there is none, only that."""
    if config is None or config is ABSENT:
        return {"*": config}
    if names == ("*",):
        return dict(vars(config))
    return {name: getattr(config, name, ABSENT) for name in names}


def _hugging_face(config: Any) -> Any:
    """All that a Hugging Face config says, without what is incidental, at any depth."""
    return _without(config.to_dict()) if hasattr(config, "to_dict") else config


def _without(said: Any) -> Any:
    if isinstance(said, Mapping):
        return {key: _without(value) for key, value in said.items() if key not in INCIDENTAL}
    return [_without(one) for one in said] if isinstance(said, list | tuple) else said


def _where(said: Any, beginnings: tuple[str, ...], path: str = "") -> dict[str, Any]:
    """What is said under names that begin so, at any depth, by its path: so that what differs has a name."""
    found: dict[str, Any] = {}
    for key, value in said.items() if isinstance(said, Mapping) else ():
        if str(key).startswith(beginnings):
            found[f"{path}{key}"] = value
        else:
            found |= _where(value, beginnings, f"{path}{key}.")
    return found
