"""When servers load ahead what they will need, and how much of that at once. Pure."""

from math import inf
from typing import NamedTuple


class Bounds(NamedTuple):
    """How much is loaded ahead. at_once: in all; per_replica: of these. within_s: for one, its wait included."""

    at_once: int = 16
    per_replica: int = 4
    within_s: float = 5.0


class Policy(NamedTuple):
    """When a long stream is loaded again: after so many tokens, but not sooner than so many seconds."""

    every_tokens: int = 256
    every_s: float = 2.0

    def due(self, tokens: int, loaded: int, since_s: float = inf) -> bool:
        """Whether it is. tokens: that there are; loaded: of these; since_s: since they were."""
        return tokens >= loaded + self.every_tokens and since_s >= self.every_s
