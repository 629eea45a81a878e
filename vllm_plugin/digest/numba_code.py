"""Code for the CPU, compiled when it is imported, or found compiled before. Needs numba.

What was compiled before is kept for one file, and thrown away when that file changes; what it imports is not looked at.
So whatever makes machine code (an `intrinsic`) is in the file of what is compiled of it, and never here.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types


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
