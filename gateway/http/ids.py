"""Request ids: random, so that no two gateways make the same, and cheap."""

import os
from collections.abc import Iterator

ID_BYTES = 12
BLOCK = 256  # ids per question to the kernel, each of which lets the other threads run first


def _ids() -> Iterator[str]:
    while True:
        block = os.urandom(ID_BYTES * BLOCK)
        for start in range(0, len(block), ID_BYTES):
            yield "req-" + block[start : start + ID_BYTES].hex()


_all = _ids()


def new_id() -> str:
    """Name a request."""
    return next(_all)
