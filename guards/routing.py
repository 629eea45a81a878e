"""Which replica is next: filter, score, pick. Pure."""

from collections.abc import Iterable
from typing import NamedTuple


class Candidate(NamedTuple):
    """A replica as routing sees it.

    load: streams and requests in flight there, through this gateway.
    doubtful: most of its streams are silent now.
    """

    name: str
    up: bool
    standby: bool
    load: int
    doubtful: bool = False


def pick(candidates: Iterable[Candidate], avoid: frozenset[str] = frozenset()) -> str | None:
    """Choose the replica for the next leg; None when there is none left to try.

    In order: up before down, undoubted before doubtful, active before standby, the least loaded, the first named.
    Those in `avoid` failed this very request and come into question only when no other is up.
    A replica that is held for down is still tried when nothing else is left: the verdict may be stale.
    """
    usable = [one for one in candidates if one.up or one.name not in avoid]
    if len(usable) < 2:
        return usable[0].name if usable else None
    return min(usable, key=lambda one: (not one.up, one.name in avoid, one.doubtful, one.standby, one.load)).name
