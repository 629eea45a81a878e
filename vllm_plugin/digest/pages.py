"""Pages: the blocks of one KV cache group, summed many at a time."""

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vllm_plugin.digest.part import WORD_BYTES, Part
from vllm_plugin.digest.runs import Runs, runs
from vllm_plugin.digest.segments import Alike, alike

if TYPE_CHECKING:
    import torch

    from vllm_plugin.digest.triton_sums import Tables

# Memory for new bytes, which nobody has seen yet and may be written: what Python's own C code does.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)


class Pages:
    """All pages of one KV cache group, by the number of their block.

        group = Pages([Part.of(kv_caches[name], "block head kv token dim") for name in layer_names])
        group.warm()
        header = Header(model=fingerprint, form=group.form, page_bytes=group.page_bytes, rank=rank, pool="0")
        for block, row in zip(ids, group.sums(ids)):
            digests[block] = seal(header.page(chain[block], position[block], tokens[block]), row)

    parts: of its layers, in the order in which they always are; on one device, as many blocks each. Where a layer has
        several tensors (states), each is a part.
    blocks: how many pages there are. tiles: of a page; page_bytes: its true length. form: what its parts are, which
        belongs into headers; device: where they are.

    It can be used by many threads. It looks at memory that others write: whoever calls sees to it that these pages are
    not being written, on a GPU by calling on the stream that writes them.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        assert parts, "a page has layers"
        assert len({(part.blocks, part.device) for part in parts}) == 1, "as many blocks each, on one device"
        self.parts = tuple(parts)
        self.blocks, self.device = parts[0].blocks, parts[0].device
        self.tiles = sum(part.tiles for part in parts)
        self.page_bytes = WORD_BYTES * sum(part.words for part in parts)
        runs = ((form, len(list(same))) for form, same in groupby(part.form for part in parts))
        self.form = ", ".join(f"{count} of {form}" for form, count in runs)

    def packed(self, memory: Any) -> "Pages":
        """Such pages as they are stored: logical order, no padding, one after the other, as `bytes` gives them.

        memory: a buffer of this host, with so many whole pages. Its sums are these pages' sums, if nothing went wrong.
        """
        flat = np.frombuffer(memory, np.uint8)
        count, rest = divmod(flat.size, self.page_bytes)
        if rest or not count:
            raise ValueError(f"{flat.size} bytes are no pages of {self.page_bytes} bytes each")
        address, parts = flat.ctypes.data, []
        for part in self.parts:
            length = WORD_BYTES * part.words
            parts.append(Part(address, self.page_bytes, count, (), (), length, part.form, "cpu", flat))
            address += length
        return Pages(parts)

    def warm(self) -> None:
        """Compile what the sums need, or find it compiled: some seconds once on a machine, else less than one."""
        self.sums([0])
        if self._by_triton:
            from vllm_plugin.digest import triton_sums

            triton_sums.warm(self._tables)

    def sums(self, ids: ArrayLike) -> NDArray[np.uint64]:
        """The tile sums of some pages, for `seal`. Shape: (ids, tiles). Waits for the device, once.

        Raises IndexError for a block that there is not.
        """
        blocks = self._existing(ids)
        if self.device == "cpu":
            from vllm_plugin.digest import numba_sums

            return numba_sums.sums(self._kinds, self.tiles, blocks)
        found: NDArray[np.int64] = self.launch(blocks).cpu().numpy()
        return found.view(np.uint64)

    def launch(self, ids: ArrayLike) -> "torch.Tensor":
        """The same, on the device and its current stream, not waited for: int64 that stand for unsigned ones."""
        blocks = self._existing(ids)
        if self._by_triton:
            from vllm_plugin.digest import triton_sums

            return triton_sums.sums(self._tables, blocks)
        from vllm_plugin.digest import torch_sums

        return torch_sums.sums(self.parts, blocks)

    def bytes(self, block: int) -> bytes:
        """A page's bytes in logical order, without padding: what `seal_keyed` is over, and what may be stored."""
        (block,) = self._existing([block]).tolist()
        if self.device == "cpu":
            from vllm_plugin.digest import numba_copies

            made: bytes = _new_bytes(None, self.page_bytes)
            into = np.array([_address(np.frombuffer(made, np.uint8))], np.uint64)
            numba_copies.gather(self._runs, np.array([block], np.int64), into)
            return made
        import torch

        from vllm_plugin.digest import torch_sums

        ids = torch.tensor([block], device=self.device)
        return b"".join(torch_sums.words(part, ids).cpu().numpy().tobytes() for part in self.parts)

    def write(self, ids: ArrayLike, contents: Sequence[Any]) -> None:
        """Put pages into blocks, on a GPU by its current stream. contents: what `bytes` gave, in any buffers."""
        blocks = self._existing(ids)
        if len(blocks) != len(contents):
            raise ValueError(f"{len(contents)} pages are not for {len(blocks)} blocks")
        for content in contents:
            if len(content) != self.page_bytes:
                raise ValueError(f"{len(content)} bytes are no page of {self.page_bytes} bytes")
        if self.device == "cpu":
            from vllm_plugin.digest import numba_copies

            flat = [np.frombuffer(content, np.uint8) for content in contents]
            numba_copies.scatter(self._runs, blocks, np.array([_address(one) for one in flat], np.uint64))
            return
        import torch

        from vllm_plugin.digest import torch_sums

        for block, content in zip(blocks.tolist(), contents, strict=True):
            words = torch.from_numpy(np.frombuffer(content, "<i4").copy())
            for part, piece in zip(self.parts, torch.split(words, [part.words for part in self.parts]), strict=True):
                torch_sums.write(part, block, piece)

    def _existing(self, ids: ArrayLike) -> NDArray[np.int64]:
        """They are looked at here, because nothing behind this does: it reads raw memory."""
        blocks = np.array(ids, dtype=np.int64).reshape(-1)  # a copy: the device may read it later
        if blocks.size and not (blocks.min() >= 0 and blocks.max() < self.blocks):
            raise IndexError(f"blocks are 0 to {self.blocks - 1}, not {blocks.min()} to {blocks.max()}")
        return blocks

    @property
    def _by_triton(self) -> bool:
        return self.device.startswith("cuda") and importlib.util.find_spec("triton") is not None

    @cached_property
    def _kinds(self) -> list[Alike]:
        return alike(self.parts)

    @cached_property
    def _runs(self) -> list[Runs]:
        return runs(self.parts)

    @cached_property
    def _tables(self) -> "Tables":
        from vllm_plugin.digest.triton_sums import Tables

        return Tables.of(self.parts)


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])
