"""Plans: what a request gets from the page store instead of computing it. The scheduler's part. Pure.

Loads are always asynchronous: a request that waits for pages has computed nothing yet, so that where one is bad it is
simply computed from there. What was loaded is verified in its place by the worker before anybody reads it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from vllm_plugin.page import Load, Page

LOADS_MAX = 8  # of one request: what cannot be loaded, and is there again whenever it is asked for, is computed then


class Held(Protocol):
    """What lookups.py does."""

    def held(self, request_id: str, keys: Sequence[bytes]) -> int | None: ...
    def drop(self, request_id: str) -> None: ...


class Plans:
    """block_tokens: of a page. key: of a page in the store, by its chain; None while the model is not known."""

    def __init__(self, lookups: Held, key: Callable[[bytes], bytes | None], block_tokens: int) -> None:
        self._lookups, self._key, self._block_tokens = lookups, key, block_tokens
        self._planned: dict[str, tuple[int, tuple[bytes, ...], bytes]] = {}
        self._loads: Counter[str] = Counter()

    def beyond(self, request_id: str, chains: Sequence[bytes], tokens: int, local_tokens: int) -> int | None:
        """How many tokens the store has behind those that are here; None: it has not said yet. tokens: of the request,
        whoever gave them out; its last is computed.

        May be asked any number of times; the last answer is the plan.
        """
        first, last = local_tokens // self._block_tokens, min((tokens - 1) // self._block_tokens, len(chains))
        wanted = tuple(bytes(chain) for chain in chains[first:last])
        keys = [key for chain in wanted if (key := self._key(chain)) is not None]
        keys = keys if self._loads[request_id] < LOADS_MAX else []
        count = self._lookups.held(request_id, keys) if keys else 0
        if count is None:
            return None
        parent = bytes(chains[first - 1]) if first else b""
        self._planned[request_id] = (first, wanted[:count], parent)
        return count * self._block_tokens

    def load(self, request_id: str, table: Sequence[int | None], page: Callable[[int, bytes, int], Page]) -> Load:
        """It has its blocks. page: names one, by block, chain and position."""
        first, chains, parent = self._planned.pop(request_id)
        self._loads[request_id] += 1
        self._lookups.drop(request_id)
        pages = []
        for number, chain in enumerate(chains, first):
            block = table[number]
            assert block is not None, "what is loaded has a place"
            pages.append(page(block, chain, number * self._block_tokens))
        return Load(request_id, tuple(pages), parent)

    def drop(self, request_id: str) -> None:
        """It is no more."""
        self._planned.pop(request_id, None)
        self._loads.pop(request_id, None)
        self._lookups.drop(request_id)
