"""The tile sums by torch, on whatever device the tensors are: slow, needs nothing else, and the others' reference."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_plugin.digest.keys import KEYS, TILE_WORDS
from vllm_plugin.digest.part import WORD_BYTES, Part

AT_ONCE_WORDS = 1 << 24  # widened to 64 bits, some times over: half a gigabyte


def sums(parts: Sequence[Part], ids: NDArray[np.int64]) -> torch.Tensor:
    """Shape: (ids, tiles), as int64: torch's integers wrap around, as sums mod 2^64 do. Not waited for."""
    device = parts[0].device
    keys = torch.from_numpy(KEYS.view(np.int64).copy()).to(device)
    on_device = torch.from_numpy(ids).to(device)
    return torch.cat([_part_sums(part, on_device, keys) for part in parts], dim=1)


def words(part: Part, ids: torch.Tensor) -> torch.Tensor:
    """The words of some blocks in logical order, copied. Shape: (ids, words), int32."""
    return _blocks(part)[ids].reshape(len(ids), part.words)


def write(part: Part, block: int, content: torch.Tensor) -> None:
    """Put words into a block, in logical order. Shape: (words,), int32, on any device."""
    where = _blocks(part)[block]
    where.copy_(content.reshape(where.shape))


def _blocks(part: Part) -> torch.Tensor:
    """All blocks' words in logical order, where they are. Shape: (blocks, *sizes, words of a run), int32."""
    tensor = torch.as_tensor(part.tensor)
    storage = tensor.untyped_storage()
    memory = torch.empty(0, dtype=torch.int32, device=tensor.device)
    memory.set_(storage, 0, (storage.nbytes() // WORD_BYTES,), (1,))
    steps = (part.block_stride, *part.strides, WORD_BYTES)
    return memory.as_strided(
        (part.blocks, *part.sizes, part.run_bytes // WORD_BYTES),
        tuple(step // WORD_BYTES for step in steps),
        (part.address - storage.data_ptr()) // WORD_BYTES,
    )


def _part_sums(part: Part, ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    padding = part.tiles * TILE_WORDS - part.words
    found = []
    for some in torch.split(ids, max(1, AT_ONCE_WORDS // part.words)):
        unsigned = words(part, some).to(torch.int64) & 0xFFFFFFFF
        tiles = torch.nn.functional.pad(unsigned, (0, padding)).reshape(len(some), part.tiles, TILE_WORDS)
        found.append((tiles * keys).sum(dim=2))
    return torch.cat(found) if found else ids.new_zeros((0, part.tiles))
