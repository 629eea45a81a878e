"""Digests of pages that this engine has sealed, kept when their blocks are given out anew. Pure.

Another connector may bring such a page back, into a block where nobody has sealed it. It is right if it is one of those
that were sealed under its chain: the same tokens computed twice, in other company, may differ in their last bits.
"""

from collections import OrderedDict

CHAINS_MAX = 262_144  # some 80 MB; the chain that was neither sealed nor asked for the longest time goes first
PER_CHAIN_MAX = 4  # the latest


class Known:
    """By chain. A digest binds its model, its tokens and its position: it cannot be right for anything else."""

    def __init__(self, chains_max: int = CHAINS_MAX) -> None:
        self._max = chains_max
        self._digests: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, chain: bytes, digest: bytes) -> None:
        """A page was sealed so."""
        before = tuple(one for one in self._digests.get(chain, ()) if one != digest)
        self._digests[chain] = (*before, digest)[-PER_CHAIN_MAX:]
        self._digests.move_to_end(chain)
        if len(self._digests) > self._max:
            self._digests.popitem(last=False)

    def of(self, chain: bytes) -> tuple[bytes, ...]:
        """What pages of this chain may be; empty where it was never sealed, or too long ago."""
        digests = self._digests.get(chain, ())
        if digests:
            self._digests.move_to_end(chain)
        return digests

    def forget(self, chain: bytes, digest: bytes) -> None:
        """A page with a valid seal that should never have been computed."""
        left = tuple(one for one in self._digests.get(chain, ()) if one != digest)
        if left:
            self._digests[chain] = left
        else:
            self._digests.pop(chain, None)

    def clear(self) -> None:
        """Of another model, all of them."""
        self._digests.clear()
