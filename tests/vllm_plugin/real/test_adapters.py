"""Real vLLM with LoRA adapters: pages are of the adapter that computed them, and the answers those of vLLM alone."""

import json

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts

TOKENS = 12
FULL = 160  # of 180 tokens, in pages of 32
RANK = 4
SHAPES = {"q_proj": (256, 256), "v_proj": (256, 128)}  # in, out


def adapter(folder, seed: int):
    """Random, and strong enough to be seen in every answer."""
    import torch
    from safetensors.torch import save_file
    from vllm.lora.request import LoRARequest

    folder.mkdir()
    about = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(SHAPES), "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    torch.manual_seed(seed)
    weights = {}
    for layer in range(4):
        for name, (inward, outward) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, inward) * 0.1
            weights[f"{prefix}.lora_B.weight"] = torch.randn(outward, RANK) * 0.1
    save_file(weights, folder / "adapter_model.safetensors")
    return LoRARequest(f"adapter{seed}", seed, str(folder))


def start(folder, plugin):
    return Engine(folder, plugin, enable_lora=True, max_loras=2, max_lora_rank=8)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [None, adapter(folder / "one", 1), adapter(folder / "two", 2)]


@pytest.fixture(scope="module")
def prompt():
    return prompts(61, families=1, each=1, shared=0, own=180)[0][0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, adapters, prompt):
    """The answers of vLLM without the plugin: computed, and from the cache."""
    engine = start(tmp_path_factory.mktemp("alone"), None)
    answers = [engine.ask(prompt, TOKENS, lora=lora) for lora in adapters]
    assert [engine.ask(prompt, TOKENS, lora=lora) for lora in adapters] == answers
    engine.stop()
    assert len({tuple(answer) for answer in answers}) == 3
    return answers


@pytest.fixture(scope="module")
def engine(tmp_path_factory, alone):
    engine = start(tmp_path_factory.mktemp("adapted"), {"scrub": "all"})
    yield engine
    engine.stop()


def test_the_answers_are_those_of_vllm_alone(engine, adapters, prompt, alone):
    """Computed, and from pages that were verified: each of its own adapter."""
    assert [engine.ask(prompt, TOKENS, lora=lora) for lora in adapters] == alone
    assert engine.metric("holdfast_prefix_hit_tokens") == 0
    assert [engine.ask(prompt, TOKENS, lora=lora) for lora in adapters] == alone
    assert engine.metric("holdfast_prefix_hit_tokens") == 3 * FULL
    assert engine.metric("holdfast_pages_verified") >= 3 * FULL // 32
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_damaged_pages_of_adapters_are_not_read(engine, adapters, prompt, alone):
    """Nor one of the other adapter in their place: the same tokens, at the same position."""
    def ask_all() -> tuple[list[list[int]], list[str]]:
        """One after the other: vLLM on the CPU computes wrong what has no adapter, in a step with what has one."""
        names = [engine.add(prompt, TOKENS, lora=adapters[0])]
        engine.run(names)
        names += [engine.add(prompt, TOKENS, lora=lora) for lora in adapters[1:]]
        return engine.run(names), names

    _, names = ask_all()
    for seed in range(6):
        mine, yours = engine.tables[names[seed % 3]], engine.tables[names[(seed + 1) % 3]]
        number = seed % 5
        kind = "swap" if seed < 3 else "zero"
        assert engine.damage(kind, mine[number], yours[number], seed)
        corrupt = engine.metric("holdfast_pages_corrupt")
        answers, names = ask_all()
        assert answers == alone, f"seed {seed}"
        assert engine.metric("holdfast_pages_corrupt") > corrupt
    assert engine.metric("holdfast_requests_aborted") == 0
