"""Which replica is next: filter, score, pick. Pure."""

from collections.abc import Iterable
from typing import NamedTuple


class Candidate(NamedTuple):
    """A replica as routing sees it.

    load: streams and requests in flight there, through this gateway.
    doubtful: most of its streams are silent now.
    refused: its breaker is open, or it came up only just and has to wait, for it went down too often.
    weight: how much it gets to do beside others; below 1 where it is much worse than they are.
    """

    name: str
    up: bool
    standby: bool
    load: int
    doubtful: bool = False
    refused: bool = False
    weight: float = 1.0


def pick(candidates: Iterable[Candidate], avoid: frozenset[str] = frozenset()) -> str | None:
    """Choose the replica for the next leg; None when there is none left to try.

    In order: up before down, not refused before refused, undoubted before doubtful, active before standby, the least
    loaded by weight, the first named.
    Those in `avoid` failed this very request and come into question only when no other is up.
    A replica that is held for down, or refused, is still tried when nothing else is left: the verdict may be stale.
    """
    usable = [one for one in candidates if one.up or one.name not in avoid]
    if len(usable) < 2:
        return usable[0].name if usable else None
    return min(usable, key=lambda one: _rank(one, one.name in avoid)).name


def _rank(one: Candidate, avoided: bool) -> tuple[bool, bool, bool, bool, bool, float]:
    # A weight of 1 leaves the order of loads as it is.
    return not one.up, avoided, one.refused, one.doubtful, one.standby, (one.load + 1) / one.weight
