"""Pages copied out of their blocks on the CPU, and into them, run by run: the runs are too short for anything else."""

import numpy as np
from numba import types
from numpy.typing import NDArray

from vllm_plugin.digest.numba_code import compiled, copy_bytes, inputs
from vllm_plugin.digest.runs import Runs


def gather(kinds: list[Runs], blocks: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Copy blocks that exist to memory at those addresses, in logical order. Nothing here looks."""
    for kind in kinds:
        _copy(*kind, blocks, contents, False)


def scatter(kinds: list[Runs], blocks: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Copy pages from memory at those addresses to blocks that exist."""
    for kind in kinds:
        _copy(*kind, blocks, contents, True)


SIGNATURE = types.void(
    *inputs("uint64", "uint64", "uint64", "uint64"), types.int64, *inputs("int64", "uint64"), types.boolean
)


@compiled(SIGNATURE)
def _copy(address, block_stride, begin, offset, run_bytes, blocks, contents, into_blocks):
    for number in range(blocks.size):
        for part in range(address.size):
            start = address[part] + np.uint64(blocks[number]) * block_stride[part]
            packed = contents[number] + begin[part]
            for run in range(offset.size):
                place = start + offset[run]
                if into_blocks:
                    copy_bytes(place, packed, run_bytes)
                else:
                    copy_bytes(packed, place, run_bytes)
                packed += np.uint64(run_bytes)
