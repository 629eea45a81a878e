"""What is in a LoRA adapter that was loaded. Neither its name nor its path nor its number is."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vllm_plugin.fingerprint.binding import bound
from vllm_plugin.fingerprint.contents import SLICE_BYTES, Plain
from vllm_plugin.fingerprint.facts import packed
from vllm_plugin.fingerprint.reading import tile_sums

# Of a layer: what is multiplied, and by how much.
TENSORS, NUMBERS = ("lora_a", "lora_b", "weight", "bias"), ("scaling", "rank")


def adapter_contents(adapter: Any, slice_bytes: int = SLICE_BYTES) -> bytes:
    """The fingerprint of one adapter on this rank. 32 bytes, for `adapter_of`.

    adapter: as vLLM keeps it when it is loaded, with `loras` and maybe `modules_to_save`, from layers' names to their
        weights; packed layers have lists of tensors, of which some may be None.
    """
    fields = []
    for kind in ("loras", "modules_to_save"):
        layers: Mapping[str, Any] = getattr(adapter, kind, None) or {}
        for name in sorted(layers):
            layer = layers[name]
            fields += [kind.encode(), name.encode(), packed({key: _number(layer, key) for key in NUMBERS}, name)]
            for path, tensor in _tensors(layer):
                contents = Plain(tensor)
                sums = tile_sums(contents, slice_bytes).astype("<u8").tobytes()
                fields += [path.encode(), contents.form.encode(), sums]
    return bound("adapter", *fields)


def _number(layer: Any, name: str) -> Any:
    """Scales come as int or float, whether or not they are whole: 1 and 1.0 are the same scale."""
    value = getattr(layer, name, None)
    if isinstance(value, list | tuple):
        return [None if one is None else float(one) for one in value]
    return None if value is None else float(value)


def _tensors(layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name in TENSORS:
        held = getattr(layer, name, None)
        for at, tensor in enumerate(held) if isinstance(held, list | tuple) else ((0, held),):
            if tensor is not None:
                yield f"{name}.{at}", tensor
