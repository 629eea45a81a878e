"""Pages copied out of their blocks on the CPU, and into them, run by run: the runs are too short for anything else."""

import numpy as np
from numba import types
from numpy.typing import NDArray

from vllm_plugin.digest.numba_code import LINE_BYTES, compiled, copy_bytes, copy_line, inputs, written
from vllm_plugin.digest.runs import Runs


def gather(kinds: list[Runs], blocks: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Copy blocks that exist to memory at those addresses, in logical order. Nothing here looks."""
    for kind in kinds:
        _copy_out(*kind, blocks, contents)


def scatter(kinds: list[Runs], blocks: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Copy pages from memory at those addresses to blocks that exist; past the caches, as there is much of it."""
    for kind in kinds:
        _copy_in(*kind, blocks, contents)


SIGNATURE = types.void(*inputs("uint64", "uint64", "uint64", "uint64"), types.int64, *inputs("int64", "uint64"))


@compiled(SIGNATURE)
def _copy_out(address, block_stride, begin, offset, run_bytes, blocks, contents):
    for number in range(blocks.size):
        for part in range(address.size):
            start = address[part] + np.uint64(blocks[number]) * block_stride[part]
            packed = contents[number] + begin[part]
            for run in range(offset.size):
                copy_bytes(packed, start + offset[run], run_bytes)
                packed += np.uint64(run_bytes)


@compiled(SIGNATURE)
def _copy_in(address, block_stride, begin, offset, run_bytes, blocks, contents):
    for number in range(blocks.size):
        for part in range(address.size):
            start = address[part] + np.uint64(blocks[number]) * block_stride[part]
            packed = contents[number] + begin[part]
            for run in range(offset.size):
                place = start + offset[run]
                if (place | np.uint64(run_bytes)) & np.uint64(LINE_BYTES - 1):
                    copy_bytes(place, packed, run_bytes)
                else:
                    for at in range(0, run_bytes, LINE_BYTES):
                        copy_line(place + np.uint64(at), packed + np.uint64(at))
                packed += np.uint64(run_bytes)
    written()
