"""The tile sums on the CPU, compiled. Needs numba; whoever imports this compiles, or finds it compiled before."""

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from vllm_plugin.digest.keys import KEYS
from vllm_plugin.digest.numba_code import compiled, inputs
from vllm_plugin.digest.segments import Alike


def sums(kinds: list[Alike], tiles: int, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Shape: (ids, tiles). Of memory of this host, and of blocks that exist: nothing here looks."""
    found = np.empty((ids.size, tiles), np.uint64)
    for kind in kinds:
        _sums(KEYS, kind.address, kind.block_stride, kind.column, *kind.segments, ids, found)
    return found


@intrinsic
def words_at(context: Any, address: Any) -> Any:
    """The 32-bit words at an address."""
    signature = types.CPointer(types.uint32)(types.uint64)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, build


SIGNATURE = types.void(
    *inputs("uint64", "uint64", "uint64", "int64", "uint64", "int64", "int64", "int64", "int64"),
    types.Array(types.uint64, 2, "C"),
)


@compiled(SIGNATURE)
def _sums(keys, address, block_stride, column, offset, key, words, tile, ids, found):
    """Four parts at a time, which may be of more than one block.

    So a key that was read is used four times, and the memory has four streams to bring. That is worth half as much
    again in cache, and twice as much outside of it. The last four may be fewer: then the last one is done again.
    """
    parts = address.size
    last = ids.size * parts - 1
    totals = np.zeros((4, tile.max() + 1), np.uint64)
    blocks, layers = np.zeros(4, np.int64), np.zeros(4, np.int64)
    starts = np.zeros(4, np.uint64)
    for first in range(0, last + 1, 4):
        for lane in range(4):
            number = min(first + lane, last)
            blocks[lane], layers[lane] = number // parts, number % parts
            starts[lane] = address[layers[lane]] + np.uint64(ids[blocks[lane]]) * block_stride[layers[lane]]
        totals[:] = 0
        for piece in range(offset.size):
            count, at, row = words[piece], offset[piece], tile[piece]
            factors = keys[key[piece] : key[piece] + count]
            words_0 = carray(words_at(starts[0] + at), (count,))
            words_1 = carray(words_at(starts[1] + at), (count,))
            words_2 = carray(words_at(starts[2] + at), (count,))
            words_3 = carray(words_at(starts[3] + at), (count,))
            sum_0 = sum_1 = sum_2 = sum_3 = np.uint64(0)
            for i in range(count):
                factor = factors[i]
                sum_0 += np.uint64(words_0[i]) * factor
                sum_1 += np.uint64(words_1[i]) * factor
                sum_2 += np.uint64(words_2[i]) * factor
                sum_3 += np.uint64(words_3[i]) * factor
            totals[0, row] += sum_0
            totals[1, row] += sum_1
            totals[2, row] += sum_2
            totals[3, row] += sum_3
        for lane in range(4):
            into = column[layers[lane]]
            found[blocks[lane], into : into + totals.shape[1]] = totals[lane]
