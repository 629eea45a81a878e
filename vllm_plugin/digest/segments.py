"""The runs of a block, cut where tiles end: what compiled code goes over. Parts that are alike share them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_plugin.digest.keys import TILE_WORDS
from vllm_plugin.digest.part import WORD_BYTES, Part


class Segments(NamedTuple):
    """Pieces of memory, each within one run and one tile, in the order in which they lie in memory.

    A sum does not mind the order of its terms, the memory does: strided layouts are read as fast as contiguous ones.

    offset: from the beginning of the block, in bytes. key: of the first word, its place in the tile. words, tile: the
    piece's length, and its tile within the part.
    """

    offset: NDArray[np.uint64]
    key: NDArray[np.int64]
    words: NDArray[np.int64]
    tile: NDArray[np.int64]

    @classmethod
    def of(cls, part: Part) -> "Segments":
        run_words = part.run_bytes // WORD_BYTES
        starts = np.union1d(np.arange(0, part.words, run_words), np.arange(0, part.words, TILE_WORDS))
        words = np.diff(starts, append=part.words)
        offset = part.offsets()[starts // run_words] + WORD_BYTES * (starts % run_words)
        order = np.argsort(offset, kind="stable")
        columns = (offset.astype(np.uint64), starts % TILE_WORDS, words, starts // TILE_WORDS)
        return cls(*(np.ascontiguousarray(column[order]) for column in columns))


class Alike(NamedTuple):
    """Parts whose runs are the same.

    address, block_stride: of each part. column: of its first tile among the page's.
    """

    address: NDArray[np.uint64]
    block_stride: NDArray[np.uint64]
    column: NDArray[np.int64]
    segments: Segments


def alike(parts: Sequence[Part]) -> list[Alike]:
    """The parts of a page, by what their runs are."""
    kinds: dict[tuple[object, ...], list[tuple[Part, int]]] = {}
    column = 0
    for part in parts:
        kinds.setdefault((part.sizes, part.strides, part.run_bytes), []).append((part, column))
        column += part.tiles
    return [
        Alike(
            np.array([part.address for part, _ in kind], np.uint64),
            np.array([part.block_stride for part, _ in kind], np.uint64),
            np.array([first for _, first in kind], np.int64),
            Segments.of(kind[0][0]),
        )
        for kind in kinds.values()
    ]
