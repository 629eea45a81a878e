"""Real vLLM does not start with what is not protected, and says in a line each what to write instead."""

import json
import shutil

import pytest

from tests.vllm_plugin.real.engine import MODEL, Engine

OURS = {"kv_connector": "HoldfastConnector", "kv_role": "kv_both"}
OTHER = {"kv_connector": "DecodeBenchConnector", "kv_role": "kv_both"}
TWO_GROUPS = {
    "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 96, "model_type": "llama",
}  # fmt: skip
JAMBA = {
    "architectures": ["JambaForCausalLM"], "model_type": "jamba", "vocab_size": 8192, "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
    "num_experts": 1, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_dt_rank": 4, "use_mamba_kernels": False, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def lines_at_start(folder, **options) -> list[str]:
    """What Holdfast says instead of starting."""
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    try:
        with pytest.raises(ValueError, match="Holdfast does not start") as refused:
            Engine(folder, {}, **options)
    finally:
        ensure_kv_transfer_shutdown()  # the worker's half had started
        cleanup_dist_env_and_memory()
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


def among(*connectors, **policy) -> dict:
    extra = {"connectors": list(connectors)}
    return {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra} | policy


def test_layers_of_two_kinds_and_no_prefix_caching(tmp_path):
    """Both at once, in two lines."""
    off, groups = lines_at_start(tmp_path, hf_overrides=TWO_GROUPS, enable_prefix_caching=False)
    assert "write --enable-prefix-caching" in off
    assert "only one group of attention layers" in groups
    assert "sliding window" in groups
    assert "full attention" in groups


def test_a_model_with_states(tmp_path):
    """Of Mamba, beside attention."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (model / "config.json").write_text(json.dumps(JAMBA))
    (groups,) = lines_at_start(
        tmp_path, model=str(model), load_format="dummy", dtype="bfloat16", enable_prefix_caching=True, block_size=None,
        num_gpu_blocks_override=64,
    )  # fmt: skip
    assert "MambaSpec" in groups


def test_members_that_were_not_tried_together(tmp_path):
    """Ours twice, and one of which nobody knows anything."""
    twice, untried = lines_at_start(
        tmp_path, kv_transfer_config=among(OURS, OURS, OTHER, kv_load_failure_policy="recompute")
    )
    assert "write it once" in twice
    assert "DecodeBenchConnector" in untried
    assert '"unprotected":["other-connectors"]' in untried


def test_the_policy_said_of_a_member_and_not_of_the_whole(tmp_path):
    """vLLM looks at that of the whole only."""
    (policy,) = lines_at_start(
        tmp_path, kv_transfer_config=among(OURS | {"kv_load_failure_policy": "recompute"})
    )
    assert 'write "kv_load_failure_policy":"recompute"' in policy
