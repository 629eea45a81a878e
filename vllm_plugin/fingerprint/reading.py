"""What all weights of a rank were, at one time: the sums of their tiles, and one value over all of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vllm_plugin.fingerprint.binding import bound
from vllm_plugin.fingerprint.contents import SLICE_BYTES, Contents, slice_sums, slices
from vllm_plugin.fingerprint.weights import Weight, WeightsRefused


@dataclass(frozen=True)
class Reading:
    """By name, in order of names. It holds no weight; the sums are a 2048th part of what the weights are.

    forms, sums: of each weight, under each of its names. read_bytes, seconds: what it cost; a weight of two names is
    read once.
    """

    forms: Mapping[str, str]
    sums: Mapping[str, NDArray[np.uint64]]
    read_bytes: int
    seconds: float

    @classmethod
    def of(cls, weights: Mapping[str, Weight], slice_bytes: int = SLICE_BYTES) -> "Reading":
        """Read all of them, slice by slice, each where it is. Nobody may write to them meanwhile.

        Raises WeightsRefused for what cannot be read.
        """
        begun, read_bytes = time.perf_counter(), 0
        forms: dict[str, str] = {}
        sums: dict[str, NDArray[np.uint64]] = {}
        first_name: dict[object, str] = {}
        for name in sorted(weights):
            contents = weights[name].contents()
            if contents is None:
                raise WeightsRefused(f"{name} is gone while it is read")
            same = first_name.setdefault(contents.place, name) if contents.size_bytes else name
            forms[name] = contents.form
            if same == name:
                read_bytes += contents.size_bytes
            sums[name] = tile_sums(contents, slice_bytes) if same == name else sums[same]
        return cls(forms, sums, read_bytes, time.perf_counter() - begun)

    @cached_property
    def digest(self) -> bytes:
        """Over names, dtypes, shapes and contents. 32 bytes."""
        fields = []
        for name in sorted(self.forms):
            fields += [name.encode(), self.forms[name].encode(), self.sums[name].astype("<u8").tobytes()]
        return bound("weights", *fields)

    def differs(self, other: "Reading") -> list[str]:
        """The names of what is not alike in both, also of what only one has."""
        names = sorted({*self.forms, *other.forms})
        return [name for name in names if not self._alike(other, name)]

    def _alike(self, other: "Reading", name: str) -> bool:
        if name not in self.forms or self.forms[name] != other.forms.get(name):
            return False
        return bool(np.array_equal(self.sums[name], other.sums[name]))


def tile_sums(contents: Contents, slice_bytes: int = SLICE_BYTES) -> NDArray[np.uint64]:
    """Of all slices, one after the other. Shape: (tiles,)."""
    found = [slice_sums(contents, first, end) for first, end in slices(contents, slice_bytes)]
    return np.concatenate(found) if found else np.zeros(0, np.uint64)
