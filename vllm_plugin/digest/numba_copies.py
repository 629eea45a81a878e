"""Pages copied out of their blocks on the CPU, and into them, run by run: the runs are too short for anything else."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from vllm_plugin.digest.numba_code import compiled, inputs
from vllm_plugin.digest.runs import Runs


def gather(kinds: list[Runs], blocks: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Copy blocks that exist to memory at those addresses, in logical order. Nothing here looks."""
    for kind in kinds:
        _copy_out(*kind, blocks, contents)


def scatter(kinds: list[Runs], blocks: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Copy pages from memory at those addresses to blocks that exist; past the caches, as there is much of it."""
    for kind in kinds:
        _copy_in(*kind, blocks, contents)


@intrinsic
def copy_bytes(context: Any, into: Any, source: Any, count: Any) -> Any:
    """C's memcpy: two addresses, and how many bytes."""
    signature = types.void(types.uint64, types.uint64, types.int64)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, of = (builder.inttoptr(one, cgutils.voidptr_t) for one in arguments[:2])
        cgutils.raw_memcpy(builder, to, of, arguments[2], 1)
        return context.get_dummy_value()

    return signature, build


LINE_BYTES = 64  # of a cache
_VECTOR_BYTES = 32


@intrinsic
def copy_line(context: Any, into: Any, source: Any) -> Any:
    """A line, to an address that is a multiple of LINE_BYTES, past the caches; what was there is not read before.

    `written` must follow, before any other thread looks there.
    """
    signature = types.void(types.uint64, types.uint64)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        vector = ir.VectorType(word, _VECTOR_BYTES // 8).as_pointer()
        past = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        for at in range(0, LINE_BYTES, _VECTOR_BYTES):
            to, of = (builder.inttoptr(builder.add(one, ir.Constant(word, at)), vector) for one in arguments)
            builder.store(builder.load(of, align=1), to, align=_VECTOR_BYTES).set_metadata("nontemporal", past)
        return context.get_dummy_value()

    return signature, build


@intrinsic
def written(context: Any) -> Any:
    """What `copy_line` wrote is there for every thread that sees what comes behind this."""
    signature = types.void()

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return signature, build


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
