"""What of vLLM's scheduler is looked at, and what it is told: requests, its cache, a step, and what of that is spoiled.

Neither torch nor vLLM is known here: compat.py has what these protocols ask for.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Request(Protocol):
    """What of vLLM's request is looked at."""

    request_id: str
    num_tokens: int
    num_computed_tokens: int
    block_hashes: Any
    lora_request: Any
    kv_transfer_params: Any


class Cache(Protocol):
    """What of vLLM's block pool is looked at, of one group."""

    def cached(self, chain: bytes) -> int | None:
        """The block that a look-up of this chain hits."""

    def is_cached_as(self, block: int, chain: bytes) -> bool:
        """Whether that block is registered under that chain."""

    def table(self, request_id: str) -> Sequence[int | None]:
        """The blocks of a request in order; None where the window has left one behind."""

    def block(self, request_id: str, number: int) -> int | None:
        """One of them."""

    def evict(self, blocks: Collection[int]) -> None:
        """No look-up hits them any more; who holds them, holds them."""

    def evict_all(self) -> None:
        """The same of all."""


class Scheduled(NamedTuple):
    """A request of this step. tokens: how many of it are computed now. fresh: admitted in this step.

    given_out: the blocks that it got in this step to write to, those that it hit not among them.
    """

    request: Request
    tokens: int
    given_out: tuple[int, ...]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Spoiled:
    """Requests that computed this step's tokens from what was not intact.

    Their output of this step is thrown away. again: these are computed anew, from the last page that is good. failed:
    these end with an error, as tokens that may be wrong were given to the client before, or because it was said so.
    """

    again: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.again or self.failed)
