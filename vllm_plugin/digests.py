"""Digests of pages in place: sums and headers put together, for one KV cache group."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_plugin.digest import Header, Pages, Rank, seal
from vllm_plugin.page import Page

Row = NDArray[np.uint64]
TAIL = b"tail"  # stands for the chain of a page that is not full, which nobody looks up


class Digests:
    """The blocks of a group, as they are now. model: the fingerprint, 32 bytes. count: told (name, how many)."""

    def __init__(
        self,
        pages: Pages,
        *,
        model: bytes,
        rank: Rank,
        pool: str,
        block_tokens: int,
        count: Callable[[str, float], None] = lambda name, number: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pages, self._rank, self._pool = pages, rank, pool
        self._block_tokens = block_tokens
        self._count, self._clock = count, clock
        self._counting = threading.Lock()  # loads are digested by several threads
        self.use_model(model)

    def use_model(self, model: bytes) -> None:
        """The weights are others now: what was sealed before stands for nothing."""
        self.model = model
        self._header = Header(
            model=model, form=self._pages.form, page_bytes=self._pages.page_bytes, rank=self._rank, pool=self._pool
        )

    def sums(self, blocks: Sequence[int]) -> list[Row]:
        """What these blocks hold, in one call. Waits for the device."""
        if not blocks:
            return []
        started_s = self._clock()
        rows = list(self._pages.sums(blocks))
        with self._counting:
            self._count("digest_seconds", self._clock() - started_s)
            self._count("digest_bytes", len(blocks) * self._pages.page_bytes)
        return rows

    def of(self, page: Page, row: Row) -> bytes:
        """The digest of a page that is what it is called, if its block holds this. row: one of `sums`."""
        return seal(self._header.page(page.chain or TAIL, page.position, self._block_tokens), row)

    def in_place(self, pages: Sequence[Page]) -> list[bytes]:
        """The digests of pages, if they are what they are called."""
        rows = self.sums([page.block for page in pages])
        return [self.of(page, row) for page, row in zip(pages, rows, strict=True)]
