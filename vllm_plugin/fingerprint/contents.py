"""What is in a tensor, read in slices: its bytes in logical order, however it lies in memory."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_plugin.digest import Pages, Part
from vllm_plugin.digest.keys import TILE_WORDS
from vllm_plugin.digest.part import WORD_BYTES

TILE_BYTES = WORD_BYTES * TILE_WORDS
SLICE_BYTES = 4 << 20  # what is copied at most at once, where something must be


class Contents(Protocol):
    """Bytes in a fixed order.

    form: what they are, in words: dtype and sizes. size_bytes: how many. place: equal only for the same memory.
    """

    form: str
    size_bytes: int
    place: object

    def cut(self, first: int, end: int) -> torch.Tensor:
        """Some of them, as flat uint8 on their device; `first` is at a tile's beginning. A copy only where it must."""
        ...


class Plain:
    """A tensor of any dtype, shape and strides. Strides are not of its contents: a copy that is contiguous is equal."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.detach()
        self.form = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        if tensor.is_conj() or tensor.is_neg():
            self._tensor = self._tensor.resolve_conj().resolve_neg()
        self.size_bytes = tensor.numel() * tensor.element_size()
        self.place: object = (str(tensor.device), tensor.data_ptr(), self.form, tensor.stride())

    def cut(self, first: int, end: int) -> torch.Tensor:
        item = self._tensor.element_size()
        assert TILE_BYTES % item == 0
        return _flat(self._tensor, first // item, end // item)


class Packed:
    """A weight that its kernel has taken and rearranged, so that it can only be asked: one row of ones after another.

    vLLM does so on the CPU: oneDNN keeps the weight where nothing can see it, and the parameter is emptied. Each row
    of the unit matrix yields one column of the weight, exactly: all other terms are zero. So what is digested is what
    the kernel computes with. Two things are not seen, as neither changes any result: the sign of a zero, and what the
    others of a column are once one of them is infinite.

    A byte costs as many multiplications as the weight has columns: right for small models on CPUs, and for no others.

    apply: from (rows, columns) to (rows, outputs).
    """

    def __init__(self, apply: Callable[[torch.Tensor], torch.Tensor], columns: int, outputs: int, like: Any) -> None:
        self._apply, self._columns, self._outputs = apply, columns, outputs
        self._dtype, self._device = like.dtype, like.device
        self.form = f"packed {str(like.dtype).removeprefix('torch.')} {(columns, outputs)}"
        self.size_bytes = columns * outputs * like.dtype.itemsize
        self.place: object = object()

    def cut(self, first: int, end: int) -> torch.Tensor:
        row_bytes = self._outputs * self._dtype.itemsize
        from_row, to_row = first // row_bytes, -(-end // row_bytes)
        units = torch.zeros((to_row - from_row, self._columns), dtype=self._dtype, device=self._device)
        units[torch.arange(to_row - from_row), torch.arange(from_row, to_row)] = 1
        with torch.inference_mode():
            rows = _as_bytes(self._apply(units))
        return rows[first - from_row * row_bytes : end - from_row * row_bytes]


class Number:
    """One number that is no tensor: a scale that a kernel takes as an argument."""

    def __init__(self, number: float) -> None:
        self.form = "number"
        self._tensor = torch.tensor([number], dtype=torch.float64)
        self.size_bytes = self._tensor.numel() * self._tensor.element_size()
        self.place: object = object()

    def cut(self, first: int, end: int) -> torch.Tensor:
        return _as_bytes(self._tensor)[first:end]


def slices(contents: Contents, slice_bytes: int = SLICE_BYTES) -> list[tuple[int, int]]:
    """Where they are cut: the first byte of each slice, and the one behind its last."""
    assert slice_bytes % TILE_BYTES == 0, "slices are of whole tiles, so that sums do not depend on their size"
    return [(at, min(at + slice_bytes, contents.size_bytes)) for at in range(0, contents.size_bytes, slice_bytes)]


def slice_sums(contents: Contents, first: int, end: int) -> NDArray[np.uint64]:
    """The tile sums of a slice, reckoned where it is; the last tile is filled up with zeros. Shape: (tiles,)."""
    memory = contents.cut(first, end)
    if memory.data_ptr() % WORD_BYTES:
        memory = memory.clone()
    whole, rest = divmod(memory.numel(), TILE_BYTES)
    found = [_sums(memory, whole)] if whole else []
    if rest:
        last = memory.new_zeros(TILE_BYTES)
        last[:rest] = memory[whole * TILE_BYTES :]
        found.append(_sums(last, 1))
    return np.concatenate(found)


def _sums(memory: torch.Tensor, tiles: int) -> NDArray[np.uint64]:
    """Each tile is a page of its own, so that one launch, or one call, goes over all of them."""
    part = Part(memory.data_ptr(), TILE_BYTES, tiles, (), (), TILE_BYTES, "tile", str(memory.device), memory)
    return Pages([part]).sums(np.arange(tiles))[:, 0]


def _flat(tensor: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Some elements in logical order; copied only where they do not lie so, and never more than these."""
    if tensor.is_contiguous():
        return _as_bytes(tensor.view(-1)[first:end])
    if tensor.dim() == 1:
        return _as_bytes(tensor[first:end])
    row = tensor[0].numel()
    top, bottom = first // row, (end - 1) // row
    if top == bottom:
        return _flat(tensor[top], first - top * row, end - top * row)
    pieces = []
    if first % row:
        pieces.append(_flat(tensor[top], first % row, row))
        top += 1
    whole = end // row
    if whole > top:
        pieces.append(_as_bytes(tensor[top:whole]))
    if end % row:
        pieces.append(_flat(tensor[whole], 0, end % row))
    return torch.cat(pieces)


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """As they lie in memory, which is made contiguous before. A single element may still have any stride."""
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
