"""Pages to digest: the same words in all layouts that vLLM has, and what their sums must be, reckoned plainly."""

from collections.abc import Sequence

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from vllm_plugin.digest import Pages, Part

LAYOUTS = (
    "block head token kv.dim",
    "kv block head token dim",
    "kv block token head dim",
    "block kv token head dim",
    "block kv head token dim",
)
AXES = ("block", "kv", "token", "head", "dim")
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "uint8": 1}
TILE_BYTES = 4 * 4096
MODULUS = 2**64
DRAWN = blake3(b"Holdfast ML64, keys of a tile, 1").digest(length=8 * 4096)
KEYS = [int.from_bytes(DRAWN[8 * i : 8 * i + 8], "little") | 1 for i in range(4096)]


def logical(rng: np.random.Generator, blocks: int, tokens: int, heads: int, dim: int, dtype: str) -> torch.Tensor:
    """Any bits. Shape: (blocks, kv, tokens, heads, dim)."""
    bits = rng.integers(0, 256, (blocks, 2, tokens, heads, dim * SIZES[dtype]), dtype=np.uint8)
    return torch.from_numpy(bits).view(getattr(torch, dtype))


def laid_out(content: torch.Tensor, layout: str) -> torch.Tensor:
    """The same in memory that is laid out so, with the axes that vLLM gives such a tensor."""
    if layout == "block head token kv.dim":
        return content.permute(0, 3, 2, 1, 4).contiguous().flatten(3)
    return content.permute(*(AXES.index(word) for word in layout.split())).contiguous()


def pages(contents: Sequence[torch.Tensor], layout: str) -> Pages:
    """A group of such layers."""
    return Pages([Part.of(laid_out(content, layout), layout) for content in contents])


def expected(contents: Sequence[torch.Tensor], ids: Sequence[int]) -> NDArray[np.uint64]:
    """The sums by their definition, in Python's own whole numbers."""
    rows = [[total for layer in contents for total in tile_sums(raw(layer[block]))] for block in ids]
    return np.array(rows, np.uint64)


def raw(content: torch.Tensor) -> bytes:
    """The bytes of a tensor in the order of its axes."""
    return bytes(content.contiguous().view(torch.uint8).numpy().tobytes())


def tile_sums(part: bytes) -> list[int]:
    """Of one layer's part of one page."""
    tiles = [part[at : at + TILE_BYTES] for at in range(0, len(part), TILE_BYTES)]
    words = [np.frombuffer(tile, "<u4").tolist() for tile in tiles]
    return [sum(key * word for key, word in zip(KEYS, tile, strict=False)) % MODULUS for tile in words]
