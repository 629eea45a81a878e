"""The runs of a page, in logical order: what copies go over. Parts that are alike share them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_plugin.digest.part import WORD_BYTES, Part


class Runs(NamedTuple):
    """Of parts whose runs are the same.

    address, block_stride: of each part. begin: of each part in a page as it is stored, in bytes.
    offset: of each run, from the beginning of the block, in bytes; run_bytes: its length.
    """

    address: NDArray[np.uint64]
    block_stride: NDArray[np.uint64]
    begin: NDArray[np.uint64]
    offset: NDArray[np.uint64]
    run_bytes: int


def runs(parts: Sequence[Part]) -> list[Runs]:
    """The parts of a page, by what their runs are."""
    kinds: dict[tuple[object, ...], list[tuple[Part, int]]] = {}
    begin = 0
    for part in parts:
        kinds.setdefault((part.sizes, part.strides, part.run_bytes), []).append((part, begin))
        begin += WORD_BYTES * part.words
    return [
        Runs(
            np.array([part.address for part, _ in kind], np.uint64),
            np.array([part.block_stride for part, _ in kind], np.uint64),
            np.array([first for _, first in kind], np.uint64),
            kind[0][0].offsets().astype(np.uint64),
            kind[0][0].run_bytes,
        )
        for kind in kinds.values()
    ]
