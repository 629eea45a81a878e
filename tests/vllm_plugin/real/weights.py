"""Ways to change the weights of a real vLLM: an engine for its update calls, and checkpoints."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

NORM = "model.layers.1.input_layernorm.weight"  # a weight that every page behind the first layer depends on


def scale(model: Any, factor: float, name: str = NORM) -> None:
    """In place, through `.data`: neither a version nor a hook tells of it."""
    weight = model.get_parameter(name)
    weight.data.copy_(weight.data * factor)


def checkpoint(source: Path, to: Path, factor: float) -> Path:
    """The same model under the same name, one of its weights multiplied."""
    shutil.copytree(source, to, dirs_exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    tensors[NORM] = tensors[NORM] * factor
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@dataclass
class Nothing(WeightTransferInitInfo):
    pass


@dataclass
class Chunk(WeightTransferUpdateInfo):
    factors: dict[str, float] = field(default_factory=dict)


class InPlace(WeightTransferEngine):
    """A trainer that multiplies weights, chunk by chunk."""

    init_info_cls, update_info_cls = Nothing, Chunk

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # there is no accelerator to wait for

    def receive_weights(self, update_info: Chunk, *args: Any, **kw: Any) -> None:
        for name, factor in update_info.factors.items():
            weight = self.model.get_parameter(name)
            with torch.no_grad():
                weight.mul_(factor)

    def shutdown(self) -> None:
        pass
