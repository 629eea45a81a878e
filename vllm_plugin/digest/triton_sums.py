"""The tile sums on a GPU: one launch for all pages of a step. Needs triton and torch.

A program owns one tile of one layer. It finds out once where that tile's words lie in a block, holds the keys in
registers, and then goes over some blocks. A sum mod 2^64 is made of two products of 32 bits, added up apart: the low
halves of the keys times the words in 64 bits, the high halves in 32, which are moved up once at the end. That is two
multiply-adds per word, which is what a GPU can afford while its memory is read at full speed.

Never measured so far: there was no GPU. What it computes is tested in triton's interpreter, and that it compiles.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from vllm_plugin.digest.keys import KEYS, TILE_WORDS
from vllm_plugin.digest.part import WORD_BYTES, Part

WIDE = 4  # words that are loaded at once, where all runs allow it: 16 bytes
FEW, MANY = 1, 8  # blocks per program: one, until there are programs enough to fill a GPU anyhow
ENOUGH_PROGRAMS = 4096
WARPS = 8


class Tables(NamedTuple):
    """Where the tiles of a page are, on the device: addresses, so the parts must be kept as well. Made once.

    address, block_stride, run_words, words, first_run: of each part; the last is where its runs begin in `offset`.
    part, tile: of each column; columns are the page's tiles in order. offset: of runs, from the beginning of the block,
    in bytes. low, high: halves of keys. wide: words that may be loaded at once.
    """

    address: torch.Tensor
    block_stride: torch.Tensor
    run_words: torch.Tensor
    words: torch.Tensor
    first_run: torch.Tensor
    part: torch.Tensor
    tile: torch.Tensor
    offset: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    wide: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Self:
        tiles = [part.tiles for part in parts]
        offsets = [part.offsets() for part in parts]
        columns: Any = (
            [part.address for part in parts],
            [part.block_stride for part in parts],
            [part.run_bytes // WORD_BYTES for part in parts],
            [part.words for part in parts],
            np.cumsum([0, *(part.runs for part in parts[:-1])]),
            np.repeat(np.arange(len(parts)), tiles),
            np.concatenate([np.arange(count) for count in tiles]),
            np.concatenate(offsets),
        )
        steps = [step for part in parts for step in (part.address, part.block_stride, part.run_bytes, *part.strides)]
        wide = WIDE if all(step % (WIDE * WORD_BYTES) == 0 for step in steps) else 1
        device = parts[0].device
        halves = np.ascontiguousarray(KEYS.view(np.int32).reshape(-1, 2).T)
        low, high = (torch.from_numpy(half.copy()).to(device) for half in halves)
        tables = [torch.tensor(np.asarray(column, np.int64), device=device) for column in columns]
        return cls._make([*tables, low, high, wide])


def sums(tables: Tables, ids: NDArray[np.int64]) -> torch.Tensor:
    """Shape: (ids, tiles), int64. One launch on the current stream, not waited for; of blocks that exist."""
    programs = len(ids) * len(tables.part) // MANY
    return _launch(tables, ids, MANY if programs >= ENOUGH_PROGRAMS else FEW)


def warm(tables: Tables) -> None:
    """Compile all that `sums` may need."""
    for blocks in (FEW, MANY):
        _launch(tables, np.zeros(1, np.int64), blocks)


def _launch(tables: Tables, ids: NDArray[np.int64], blocks: int) -> torch.Tensor:
    *arrays, wide = tables
    columns, device = len(tables.part), tables.part.device
    found = torch.empty((len(ids), columns), dtype=torch.int64, device=device)
    if len(ids):
        on_device = torch.from_numpy(ids).to(device, non_blocking=True)
        grid = (columns, triton.cdiv(len(ids), blocks))
        _tile_sums[grid](
            on_device, found, len(ids), columns, *arrays,
            TILE=TILE_WORDS, WORD=WORD_BYTES, WIDE=wide, BLOCKS=blocks, num_warps=WARPS,
        )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["count", "columns"])
def _tile_sums(
    ids, found, count, columns, address, block_stride, run_words, words, first_run, part, tile, offset, low, high,
    TILE: tl.constexpr, WORD: tl.constexpr, WIDE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0)
    layer = tl.load(part + column)
    run = tl.load(run_words + layer).to(tl.int32)
    group = tl.arange(0, TILE // WIDE) * WIDE  # words that lie together, with one place for all
    first = tl.load(tile + column).to(tl.int32) * TILE + group
    inside = first < tl.load(words + layer).to(tl.int32)
    begins = tl.load(offset + tl.load(first_run + layer) + first // run, mask=inside, other=0)
    place = begins + first % run * WORD
    together = tl.arange(0, WIDE)
    lane = group[:, None] + together[None, :]
    low_key = tl.load(low + lane).to(tl.uint32, bitcast=True)
    high_key = tl.load(high + lane).to(tl.uint32, bitcast=True)
    base = tl.load(address + layer)
    stride = tl.load(block_stride + layer)
    for number in range(BLOCKS):
        at = tl.minimum(tl.program_id(1) * BLOCKS + number, count - 1)  # too few are left? then the last one again
        block = tl.load(ids + at)
        where = (base + block * stride + place).to(tl.pointer_type(tl.uint32))
        where = tl.multiple_of(where, WIDE * WORD)
        word = tl.load(where[:, None] + together[None, :], mask=inside[:, None], other=0)
        low_sum = tl.sum(tl.sum(word.to(tl.uint64) * low_key, 1), 0)
        high_sum = tl.sum(tl.sum(word * high_key, 1), 0)
        total = low_sum + (high_sum.to(tl.uint64) << 32)
        tl.store(found + at.to(tl.int64) * columns + column, total.to(tl.int64, bitcast=True))
