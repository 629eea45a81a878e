"""A worker's paged memory, and its exchange with a page store: what an engine's plugin does, without the engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_plugin.digest import Pages, Part, Rank
from vllm_plugin.digests import Digests
from vllm_plugin.exchange import Exchange
from vllm_plugin.page import Page
from vllm_plugin.store import Manifest, PageStore
from vllm_plugin.store import Page as Stored

MODEL = b"model".ljust(32, b".")
TOKENS, HEADS, DIM = 32, 8, 128  # of two bytes each: a layer's part of a page has 128 KiB
LAYER_BYTES = 2 * TOKENS * HEADS * DIM * 2
LINE_WORDS = 8  # of a cache line, 64 bits each


class Paged:
    """layers: arrays, as vLLM on the CPU lays them out: a head's keys of a block, and then its values."""

    def __init__(self, store: PageStore, layers: Sequence[Any], layout: str, *, session: str = "s", threads: int = 1):
        self.store, self.layers, self.session = store, layers, session
        self.pages = Pages([Part.of(layer, layout) for layer in layers])
        self.digests = Digests(self.pages, model=MODEL, rank=Rank(), pool="p", block_tokens=TOKENS)
        self.exchange = Exchange(
            store, manifest=Manifest, stored=Stored, pages=self.pages, write=self.pages.write,
            digest=self.digests.in_place, key=key_of, block_tokens=TOKENS, session=lambda: self.session,
            threads=threads,
        )  # fmt: skip

    def copies(self, pages: Sequence[Page]) -> list[Stored]:
        """Pages that are in their blocks, sealed, as they are stored."""
        digests = self.digests.in_place(pages)
        return [self.exchange.copy(page, digest) for page, digest in zip(pages, digests, strict=True)]


def key_of(chain: bytes) -> bytes:
    return MODEL + chain


def as_in_vllm(blocks: int, layers: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """Layers of such a shape, at the beginning of a cache line, as torch's are; empty, or of any bits."""
    shape = (blocks, HEADS, 2, TOKENS, DIM)
    found = []
    for _ in range(layers):
        words = np.zeros(int(np.prod(shape)) // 4 + LINE_WORDS, np.uint64)
        first = -(words.ctypes.data // words.itemsize) % LINE_WORDS
        layer = words[first : first + words.size - LINE_WORDS]
        if rng is not None:
            layer[:] = rng.integers(0, 2**64, layer.size, np.uint64)
        found.append(layer.view(np.uint16).reshape(shape))
    return found


LAYOUT = "block head kv token dim"


def named(session: str, count: int, first_block: int = 0) -> list[Page]:
    """The pages of a session, in blocks one after the other."""
    return [Page(first_block + at, 1, 0, b"%s %d" % (session.encode(), at), TOKENS * at) for at in range(count)]
