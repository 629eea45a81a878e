"""A server beside the others of its model: is it much worse than they are? Pure.

That is no verdict. A server that is merely slow still serves, and its neighbours may be too few to be a measure; so it
is noted, and the server gets less to do, never nothing.
"""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

WEIGHT_LEAST = 0.125  # it is to be seen when a server recovers
BETTER = 0.5  # of what made it worse: below that, all is well again; between the two what was said stays


class Vitals(NamedTuple):
    """How a server was doing lately; None for what is not known.

    gap_s: seconds between the reads that brought tokens of a stream.
    waiting: requests in its queue. kv_used: share of its KV cache, 0 to 1. preempted_per_s: requests it put back.
    """

    gap_s: float | None = None
    waiting: float | None = None
    kv_used: float | None = None
    preempted_per_s: float | None = None


class Rule(NamedTuple):
    """Worse is above `factor` times the others' median, and above `least`, below which nobody minds."""

    vital: str
    least: float
    factor: float
    words: str


RULES = (
    Rule("gap_s", 0.05, 4.0, "its gaps between tokens are {:.3f} s, the others' {:.3f} s"),
    Rule("waiting", 4.0, 4.0, "{:.0f} requests wait there, at the others {:.0f}"),
    Rule("kv_used", 0.9, 1.5, "its KV cache is {:.0%} full, the others' {:.0%}"),
    Rule("preempted_per_s", 0.5, 4.0, "it puts back {:.1f} requests a second, the others {:.1f}"),
)


class Comparison(NamedTuple):
    """What was found. weight: how much it gets to do beside others, 1 is its full share.

    worse: the vitals in which it is, with what is to be said of each.
    """

    weight: float = 1.0
    worse: tuple[tuple[str, str], ...] = ()

    @property
    def vitals(self) -> frozenset[str]:
        """Those in which it is worse."""
        return frozenset(vital for vital, _ in self.worse)

    @property
    def words(self) -> list[str]:
        """What speaks against it."""
        return [said for _, said in self.worse]


ALIKE = Comparison()


def compared(own: Vitals, others: Sequence[Vitals], before: Comparison = ALIKE) -> Comparison:
    """Compare a server with the others of its model. What was found before stays until it is clearly over.

    A vital that is not known, of it or of all others, keeps what was found in it before.
    """
    weight, worse = 1.0, []
    known = dict(before.worse)
    for rule in RULES:
        mine = getattr(own, rule.vital)
        theirs = [value for one in others if (value := getattr(one, rule.vital)) is not None]
        if mine is None or not theirs:
            if rule.vital in known:
                worse.append((rule.vital, known[rule.vital]))
                weight = min(weight, before.weight)
            continue
        usual = median(theirs)
        limit = max(rule.least, rule.factor * usual) * (BETTER if rule.vital in known else 1.0)
        if mine > limit:
            worse.append((rule.vital, rule.words.format(mine, usual)))
            weight = min(weight, max(usual, rule.least / rule.factor) / mine)
    return Comparison(max(weight, WEIGHT_LEAST), tuple(worse))
