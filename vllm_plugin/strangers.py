"""Strangers: what other connectors brought and should not have, so that they are not asked for it again. Pure.

They cannot be told to forget a page. So whoever wants one that was bad is not served by them at all, and computes it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_plugin import logs
from vllm_plugin.page import Page
from vllm_plugin.residents import Residents

log = logs.logger("strangers")

CHAINS_MAX = 65_536  # the one that was found the longest time ago goes first, and may be brought, and found, again


class Strangers:
    """Chains of pages that were brought and were not it, and requests that were brought what cannot be looked at."""

    def __init__(self, chains_max: int = CHAINS_MAX) -> None:
        self._max = chains_max
        self._chains: OrderedDict[bytes, None] = OrderedDict()
        self._requests: set[str] = set()

    def refuse(self, chain: bytes) -> None:
        """That page was not it."""
        self._chains[chain] = None
        self._chains.move_to_end(chain)
        if len(self._chains) > self._max:
            self._chains.popitem(last=False)

    def pages(
        self, request: Any, first: int, table: Sequence[int | None], block_tokens: int, residents: Residents, step: int
    ) -> list[Page] | None:
        """What a request that was just admitted reads, from its page `first` on: all of it, if others brought some.

        Those are the pages that nobody has sealed in their blocks; without any, it is empty.
        None if it is no run of whole pages: then others may bring this request nothing any more.
        """
        pages, strange = [], False
        tokens = request.num_computed_tokens
        for number in range(first, tokens // block_tokens):
            block = table[number]
            if block is None:
                break
            page = residents.page(block, 0, bytes(request.block_hashes[number]), number * block_tokens)
            if not residents.holds(page):
                parent = bytes(request.block_hashes[number - 1]) if number else b""
                residents.filled(page, parent, step - 1)  # not computed in this step, from whatever is found bad in it
                strange = True
            pages.append(page)
        if (first + len(pages)) * block_tokens < tokens:
            log.error("holdfast.part_of_a_page_brought", request=request.request_id, tokens=tokens)
            self._requests.add(request.request_id)
            return None
        return pages if strange else []

    def are_refused(self, request_id: str, chains: Iterable[bytes]) -> bool:
        """Whether others may not bring it anything. chains: of all pages that it would read from there."""
        return request_id in self._requests or any(bytes(chain) in self._chains for chain in chains)

    def finished(self, request_id: str) -> None:
        """It is no more."""
        self._requests.discard(request_id)

    def clear(self) -> None:
        """Others have forgotten all they had."""
        self._chains.clear()
