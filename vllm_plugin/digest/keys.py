"""The keys of tile sums: an odd number of 64 bits for each word of a tile, the same everywhere and for ever."""

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

TILE_WORDS = 4096
SEED = b"Holdfast ML64, keys of a tile, 1"  # other keys are another version of the digest: header.VERSION


def are_apart(keys: NDArray[np.uint64]) -> bool:
    """Whether no two wrong bits of a tile cancel: keys are odd, and none equals another, or its negative, mod 2^33.

    Bits a <= b of words i and j change a sum by 2^a (+-key_i +- 2^(b-a) key_j). For a < b that is odd times 2^a. For
    a = b <= 31 it is zero mod 2^64 only where key_i = +-key_j mod 2^(64-a), and so mod 2^33.
    """
    low = keys & np.uint64(2**33 - 1)
    either = np.minimum(low, np.uint64(2**33) - low)
    return bool((keys & np.uint64(1)).all()) and np.unique(either).size == keys.size


def _keys() -> NDArray[np.uint64]:
    stream = blake3(SEED).digest(length=8 * TILE_WORDS)
    keys = np.frombuffer(stream, "<u8").astype(np.uint64) | np.uint64(1)
    keys.flags.writeable = False
    return keys


KEYS = _keys()
assert are_apart(KEYS)
