"""The digest itself, made of a header and what it stands over."""

import struct
from collections.abc import Iterable

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

DIGEST_BYTES = 16
KEY_BYTES = 32


def seal(header: bytes, sums: NDArray[np.uint64]) -> bytes:
    """The digest of one page, 16 bytes. header: of `Header.page`; sums: the page's row of `Pages.sums`.

    Against accidents, not against people: see `seal_keyed`.
    """
    words = np.ascontiguousarray(sums, dtype="<u8")
    return blake3(_prefixed(header) + words.tobytes()).digest(length=DIGEST_BYTES)


def seal_keyed(key: bytes, header: bytes, page: Iterable[bytes | memoryview]) -> bytes:
    """A MAC of a page that leaves the host, 16 bytes. page: its bytes in logical order, in pieces as they come.

    It is keyed BLAKE3 over the bytes, and not over the tile sums, whose keys everybody knows: they are linear, and
    whoever can write to a page finds other bytes with the same sums, so that a MAC over them would still be right.
    Secret tile keys would not do either: a forger would be right once in 2^32.

    key: 32 bytes, never kept where the pages are. Compare with `hmac.compare_digest`.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key must have {KEY_BYTES} bytes, this one has {len(key)}")
    mac = blake3(_prefixed(header), key=key)
    for piece in page:
        mac.update(piece)
    return mac.digest(length=DIGEST_BYTES)


def _prefixed(header: bytes) -> bytes:
    """With its length before it: nothing can be moved from the header into what follows, or back."""
    return struct.pack("<I", len(header)) + header
