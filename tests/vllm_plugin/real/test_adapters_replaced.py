"""Real vLLM with adapters: one that is replaced under its name and path is another model, and others are not."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.vllm_plugin.real.engine import Engine, prompts

TOKENS = 12
RANK = 4
TARGETS = {"q_proj": (256, 256), "v_proj": (128, 256)}


def written(folder, seed: int):
    """An adapter of random weights, as peft writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(4):
        for name, (outputs, inputs) in TARGETS.items():
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, inputs, generator=drawn)
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, RANK, generator=drawn)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(TARGETS), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": "tiny"}))
    return str(folder)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    settings = {"scrub": "all", "store": f"lmdb://{folder}/pages?size=64MiB"}
    engine = Engine(folder, settings, enable_lora=True, max_lora_rank=8, max_loras=2)
    yield engine
    engine.stop()


def test_an_adapter_replaced_under_its_name_and_path_voids_its_pages(engine, tmp_path):
    """vLLM's hashes name both, and not what is in it. Loaded anew under another number, and in place."""
    from vllm.lora.request import LoRARequest

    ((prompt,),) = prompts(51, families=1, each=1, shared=100, own=40)
    right = {}
    for seed in (1, 2, 3):
        path = written(tmp_path / f"apart{seed}", seed)
        right[seed] = engine.ask(prompt, TOKENS, lora=LoRARequest(f"apart{seed}", 10 + seed, path))
    assert len({tuple(answer) for answer in right.values()}) == 3
    assert engine.metric("holdfast_models_changed") == 0  # others' names are others' pages

    path = written(tmp_path / "one", 1)
    first = LoRARequest("one", 1, path)
    hits = engine.metric("holdfast_prefix_hit_tokens")
    assert [engine.ask(prompt, TOKENS, lora=first) for _ in range(2)] == [right[1]] * 2
    written(tmp_path / "one", 2)
    second = LoRARequest("one", 2, path)
    assert [engine.ask(prompt, TOKENS, lora=second) for _ in range(2)] == [right[2]] * 2
    written(tmp_path / "one", 3)
    engine.call("add_lora", LoRARequest("one", 2, path, load_inplace=True))
    assert [engine.ask(prompt, TOKENS, lora=second) for _ in range(2)] == [right[3]] * 2
    assert engine.metric("holdfast_models_changed") == 2
    assert engine.metric("holdfast_prefix_hit_tokens") >= hits + 3 * 128
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_no_page_of_an_adapter_is_stored(engine, tmp_path):
    """Another engine may have another adapter of that name. Those of the model itself are."""
    from vllm.lora.request import LoRARequest

    ((prompt,),) = prompts(52, families=1, each=1, shared=100, own=40)
    saved = engine.metric("holdfast_pages_saved")
    lora = LoRARequest("stored", 20, written(tmp_path / "stored", 4))
    engine.ask(prompt, TOKENS, lora=lora)
    engine.ask(prompt[::-1], 1)
    assert engine.metric("holdfast_pages_saved") in (saved, saved + 4)  # the last ones are saved in the next step
    assert engine.settled("holdfast_pages_saved", saved + 140 // 32) == saved + 140 // 32
