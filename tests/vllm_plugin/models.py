"""Small models of torch, as unlike each other as real ones are, and configs as vLLM's are."""

import dataclasses
import enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vllm_plugin.fingerprint import Fingerprint, Reading, facts_of, weights_of

SLICE_BYTES = 1 << 14  # one tile: so that small tensors have several slices
FLOAT8 = torch.float8_e4m3fn


def bits(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits, NaNs among them: contents are bytes."""
    drawn = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=drawn).bool()
    item = dtype.itemsize
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * item), dtype=torch.uint8, generator=drawn)
    return raw.view(dtype)


class Model(nn.Module):
    """One of each: tied, transposed, with odd bytes, packed 4-bit, float8, scalars, a buffer that is not saved."""

    def __init__(self, order: int = 1) -> None:
        super().__init__()
        made = {
            "embed": bits(96, 64, dtype=torch.bfloat16, seed=1),
            "turned": bits(64, 200, dtype=torch.float32, seed=2).t(),
            "strided": bits(40, 300, dtype=torch.bfloat16, seed=3)[::2, 3:299:5],
            "packed": bits(33, 70, dtype=torch.int32, seed=4),
            "odd": bits(7, 2341, dtype=torch.uint8, seed=5),
            "float8": bits(130, 130, dtype=FLOAT8, seed=6),
            "scale": bits(1, dtype=torch.float32, seed=7)[0],
            "empty": torch.zeros(0, 8),
            "same_form_1": bits(64, 64, dtype=torch.bfloat16, seed=8),
            "same_form_2": bits(64, 64, dtype=torch.bfloat16, seed=9),
        }
        self.layers = nn.ModuleDict({name: nn.Module() for name in list(made)[::order]})
        for name, module in self.layers.items():
            module.weight = nn.Parameter(made[name], requires_grad=False)
        self.register_buffer("cos_sin_cache", bits(50, 32, dtype=torch.float32, seed=10), persistent=False)
        self.register_buffer("mask", bits(9, 11, dtype=torch.bool, seed=11))
        self.register_buffer("nothing", None)
        self.lm_head = nn.Module()
        self.lm_head.weight = self.layers["embed"].weight
        self.attention = nn.Module()
        self.attention._k_scale_float = 0.5
        self.attention._v_scale_cpu = torch.tensor(0.25)
        self.attention.kv_cache = torch.zeros(64)  # written all the time, and no weight

    def weight(self, name: str) -> torch.Tensor:
        return self.layers[name].weight


def read(model: nn.Module) -> Reading:
    return Reading.of(weights_of({"": model}), SLICE_BYTES)


def flip(tensor: torch.Tensor, at: int, bit: int) -> None:
    """Flip one bit of one element, in place, wherever it lies; again, and it is as it was."""
    flat = tensor.detach().as_strided(tensor.shape, tensor.stride())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at % tensor.numel()), tensor.shape))
    one = flat[index].reshape(1).clone().view(torch.uint8)
    one[bit // 8 % one.numel()] ^= 1 << bit % 8
    flat.view(torch.uint8 if flat.dtype is FLOAT8 else flat.dtype)[index] = one.view(
        torch.uint8 if flat.dtype is FLOAT8 else flat.dtype
    )[0]


class FakeServed:
    """A served model that changes when the test says so. since_s: what `watch` tells next, once."""

    def __init__(self, id: bytes = b"m") -> None:
        self.id, self.settled, self.since_s = id, True, None
        self.looked: list[bool] = []
        self._next: bytes | None = None

    def change(self, id: bytes, settled: bool = True) -> None:
        """To be found by the next look."""
        self._next, self.settled = id, settled

    def look(self, again: bool = False) -> bool:
        self.looked.append(again)
        other, self._next = self._next, None
        self.id = other or self.id
        return other is not None

    def watch(self) -> float | None:
        since_s, self.since_s = self.since_s, None
        self.id = self.id if since_s is None else self.id + b"'"
        return since_s


class Backend(enum.Enum):
    FLASH = "a.path"
    OTHER = "b.path"


@dataclasses.dataclass
class AttentionConfig:
    backend: Backend | None = Backend.FLASH
    flash_attn_version: int | None = None


class HuggingFace:
    """A config of transformers'."""

    def __init__(self, **said: Any) -> None:
        self.said = said

    def to_dict(self) -> dict[str, Any]:
        return dict(self.said)


def vllm_config() -> Any:
    """What is read of vLLM's, with the attributes of 0.32; `calculate_kv_scales` it has no longer."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model="/models/tiny", dtype=torch.bfloat16, max_model_len=4096, quantization=None, quantization_config=None,
            disable_sliding_window=False, model_impl="auto", runner="generate", convert="none",
            enable_prompt_embeds=False,
            hf_config=HuggingFace(
                _name_or_path="/models/tiny", hidden_size=64,
                rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
                text_config={"num_key_value_heads": 4, "_name_or_path": "x"}, quantization_config={"bits": 4},
            ),
        ),
        attention_config=AttentionConfig(),
        cache_config=SimpleNamespace(
            block_size=16, hash_block_size=None, cache_dtype="auto", kv_cache_dtype_skip_layers=[], sliding_window=None,
            swa_bounded_replay=False, mamba_block_size=None, mamba_cache_dtype="auto", mamba_ssm_cache_dtype="auto",
            mamba_cache_mode="none", kv_sharing_fast_prefill=False, num_gpu_blocks=1000,
        ),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=2, pipeline_parallel_size=1, prefill_context_parallel_size=1,
            decode_context_parallel_size=1, cp_kv_cache_interleave_size=1, dcp_kv_cache_interleave_size=1,
            dcp_q_replicate=False, enable_expert_parallel=False, data_parallel_size=1, master_port=1234,
        ),
        lora_config=None,
        speculative_config=None,
    )  # fmt: skip


class Tokenizer:
    """As much of one as is looked at."""

    def __init__(self) -> None:
        self.vocabulary = {"a": 0, "b": 1, "ab": 2}
        self.all_special_tokens = ["<eos>"]
        self.said = '{"model": {"merges": ["a b"]}, "padding": null, "truncation": null}'
        self.chat_template = "{{ messages }}"
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: self.said)

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def facts(config: Any = None, **given: Any) -> dict[str, Any]:
    said = {"engine": "0.32.0", "kv_form": "4 of bfloat16 kv2 token16 head4 dim8", "tokenizer": Tokenizer()}
    return facts_of(config or vllm_config(), **said | given)


def fingerprint(rank: int = 0, ranks: int = 1, weights: Reading | None = None, **given: Any) -> Fingerprint:
    reading = weights or Reading({}, {}, 0, 0.0)
    return Fingerprint.of(facts(**given), reading, rank=rank, ranks=ranks)
