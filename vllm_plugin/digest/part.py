"""What one layer's tensor is of a page: where its words are."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vllm_plugin.digest import layout
from vllm_plugin.digest.keys import TILE_WORDS
from vllm_plugin.digest.layout import LayoutRefused

WORD_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One layer's part of all pages: strided runs of memory, which are read where they are and never copied.

    address: of the first block; block_stride: from one block to the next, in bytes; blocks: how many there are.
    sizes, strides: of what is not contiguous in a block, in logical order, outermost first; strides in bytes.
    run_bytes: what is contiguous. So the runs of a block begin where the strides say, and are all as long.
    form: dtype and sizes, in words. device: as torch names it.
    tensor: whose memory it is; kept, so that this lives as long as its parts do.

    Blocks are of whole 32-bit words, in runs of whole words that begin at whole words: others are refused. No model is
    known to have such: with fp8 a head of any multiple of four does.
    """

    address: int
    block_stride: int
    blocks: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    run_bytes: int
    form: str
    device: str
    tensor: Any

    def __post_init__(self) -> None:
        steps = {"address": self.address, "block": self.block_stride, "run": self.run_bytes}
        steps |= {f"stride {number}": stride for number, stride in enumerate(self.strides)}
        if odd := [f"{name} {value}" for name, value in steps.items() if value % WORD_BYTES]:
            raise LayoutRefused(f"{self.form}: not whole words of {WORD_BYTES} bytes: {', '.join(odd)}")
        if not self.words or self.blocks < 1:
            raise LayoutRefused(f"{self.form}: {self.blocks} blocks of {self.words} words are nothing to digest")

    @classmethod
    def of(cls, tensor: Any, words: str) -> Self:
        """The part that a torch tensor or numpy array is. words: its layout, see layout.py. Raises LayoutRefused."""
        if hasattr(tensor, "data_ptr"):
            item, address, device = tensor.element_size(), tensor.data_ptr(), str(tensor.device)
            strides = [item * stride for stride in tensor.stride()]
        else:
            item, address, device, strides = tensor.itemsize, tensor.ctypes.data, "cpu", tensor.strides
        block = layout.read(words, tuple(tensor.shape), strides)
        outer = [axis for axis in block.axes if axis.size != 1]
        run_bytes = item
        while outer and outer[-1].stride == run_bytes:
            run_bytes *= outer.pop().size
        form = f"{str(tensor.dtype).removeprefix('torch.')} {layout.form(block.axes)}"
        sizes, outer_strides = tuple(axis.size for axis in outer), tuple(axis.stride for axis in outer)
        return cls(address, block.stride, block.blocks, sizes, outer_strides, run_bytes, form, device, tensor)

    @property
    def runs(self) -> int:
        """How many runs a block has."""
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def words(self) -> int:
        """How many words a block has."""
        return self.runs * self.run_bytes // WORD_BYTES

    @property
    def tiles(self) -> int:
        """How many tiles a block has; the last may not be full."""
        return -(-self.words // TILE_WORDS)

    def offsets(self) -> NDArray[np.int64]:
        """Where the runs of a block begin, from its own beginning, in bytes; in logical order."""
        offsets = np.zeros(1, np.int64)
        for size, stride in zip(self.sizes, self.strides, strict=True):
            offsets = np.add.outer(offsets, np.arange(size, dtype=np.int64) * stride).ravel()
        return offsets

    def view(self, block: int) -> NDArray[np.uint32]:
        """A block's words in logical order, of memory of this host; not copied."""
        return np.asarray(_Strided(self, block))


class _Strided:
    """Memory, in the words in which numpy asks for it."""

    def __init__(self, part: Part, block: int) -> None:
        self.tensor = part.tensor
        self.__array_interface__ = {
            "version": 3,
            "typestr": "<u4",
            "data": (part.address + block * part.block_stride, True),
            "shape": (*part.sizes, part.run_bytes // WORD_BYTES),
            "strides": (*part.strides, WORD_BYTES),
        }
