"""What a digest binds besides the words. Pure."""

import struct
from typing import NamedTuple

VERSION = b"Holdfast ML64 1"  # of tiles, keys, order of words, header and seal: any change of these is another version
CHAIN_BYTES_MAX = 255


class Rank(NamedTuple):
    """Which shard of the model a page is of. What all ranks hold alike (MLA's pages) may be the first of one."""

    tensor: int = 0
    tensors: int = 1
    pipeline: int = 0
    pipelines: int = 1
    context: int = 0
    contexts: int = 1


class Header:
    """The headers of one group's pages, packed; what they have in common once. No two different ones are packed alike.

    model: a fingerprint of all that the words depend on besides the tokens: weights, RoPE, attention, cache dtype and
        its scales. A name is none.
    form, page_bytes: of `Pages`. rank: the shard. pool: which group, of which layers; any name.
    """

    def __init__(self, *, model: bytes, form: str, page_bytes: int, rank: Rank, pool: str) -> None:
        assert model, "a model without a fingerprint cannot be told from others"
        fields = (VERSION, model, form.encode(), struct.pack("<6I", *rank), pool.encode())
        packed = [struct.pack("<I", len(field)) + field for field in fields]
        self._common = b"".join([*packed, struct.pack("<Q", page_bytes)])

    def page(self, chain: bytes, position: int, tokens: int) -> bytes:
        """The header of one page.

        chain: the hash of its tokens and of all before them, 1 to 255 bytes. position: of its first token, from the
        beginning. tokens: how many of it are true; what is behind them is digested too.
        """
        assert 0 < len(chain) <= CHAIN_BYTES_MAX, "a page is of some tokens"
        return self._common + struct.pack("<QQB", position, tokens, len(chain)) + chain
