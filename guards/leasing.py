"""How much of a shared budget one gateway leases, and how much of that it keeps. Pure.

Rights that lie idle at one gateway are what the others lack. So a lease is what a gateway will likely use until it asks
again, and never more than a small part of what nobody uses: near a budget's end leases shrink with what is left.
"""

import math
from typing import NamedTuple

REFRESH_S = 2.0  # what a lease is to last for: twice the time between two renewals
MEMORY_S = 2.0  # use before that counts for little
PART = 8  # one gateway takes so small a part of what is free, beyond what it needs now
SLOWLY = 4  # at each renewal it gives back such a part of what it has too much


class Use(NamedTuple):
    """How fast rights of an account are used, lately. used: spent and held, as of `at_s` (monotonic)."""

    used: int
    at_s: float
    per_s: float = 0.0

    def seen(self, used: int, now_s: float) -> "Use":
        """Take in a later reading: an exponential mean over time, whatever the times between readings."""
        passed_s = now_s - self.at_s
        if passed_s <= 0:
            return self._replace(used=used)
        fades = math.exp(-passed_s / MEMORY_S)
        rate = max(0, used - self.used) / passed_s
        return Use(used, now_s, self.per_s * fades + rate * (1 - fades))


def cushion(per_s: float, share: int, pool: int) -> int:
    """How much free a gateway wants to have beyond what it needs now.

    share: of one request, about; pool: what it has free and what nobody has leased.
    """
    return min(max(math.ceil(per_s * REFRESH_S), share), max(0, pool) // PART)


def kept(free: int, cushion: int, asked: int, unleased: int, *, wanted: bool) -> int:
    """How much of what it has free a gateway keeps; the rest it gives back.

    asked: by requests that wait right now; unleased: what nobody has leased, below 0 where that is more than there is.
    wanted: another one lacks some.
    """
    if unleased < 0:
        return max(0, free + unleased)
    if wanted or unleased == 0:
        return min(free, asked if wanted else max(asked, cushion))
    too_much = free - max(2 * cushion, asked)
    return free - math.ceil(too_much / SLOWLY) if too_much > 0 else free


def refill(free: int, cushion: int) -> int:
    """How much to ask for although nobody waits yet."""
    return cushion - free if free <= cushion // 2 else 0
