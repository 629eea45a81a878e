"""Code for the CPU, compiled when it is imported, or found compiled before. Needs numba."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def compiled(signature: Any) -> Callable[[Callable[..., None]], Any]:
    """For this very CPU, for these arguments only, and kept on the disk where there is a place for it."""

    def compile_it(function: Callable[..., None]) -> Any:
        try:
            return njit(signature, nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # no folder for it can be written
            return njit(signature, nogil=True, error_model="numpy")(function)

    return compile_it


def inputs(*names: str) -> list[Any]:
    """Arrays of one axis that are only read, by the names of their types."""
    return [types.Array(getattr(types, name), 1, "C", readonly=True) for name in names]


@intrinsic
def words_at(context: Any, address: Any) -> Any:
    """The 32-bit words at an address."""
    signature = types.CPointer(types.uint32)(types.uint64)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, build


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
