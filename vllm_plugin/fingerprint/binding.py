"""One value over several, so that nothing can move from one into its neighbour. Pure."""

import struct

from blake3 import blake3

VERSION = b"Holdfast fingerprint 1"  # of all that is bound here, and of how it is packed: any change is another version
FINGERPRINT_BYTES = 32


def bound(kind: str, *fields: bytes) -> bytes:
    """BLAKE3 over some fields, with their lengths and their number; of different kinds different. 32 bytes."""
    packed = [struct.pack("<Q", len(field)) + field for field in (VERSION, kind.encode(), *fields)]
    return blake3(struct.pack("<Q", len(packed)) + b"".join(packed)).digest(length=FINGERPRINT_BYTES)
