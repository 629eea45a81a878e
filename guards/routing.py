"""Which replica is next: filter, score, pick. Pure.

Filter: of those that can be asked at all, the best kind: up, not failed by this request, not refused, not drained, not
doubtful, of the same model, active.
Score: where the request is at home; who is near to it, so that what it has computed before is still cached there; else
how busy each is.
Pick: the first in line that has not much more than its share.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import inf, log
from typing import NamedTuple, Protocol, TypeVar

TTFT_STEP_S = 0.05  # predictions that differ by less are no reason to choose
USUAL = 512  # tokens that one more request takes, about
SLOTS = 1024  # into which requests fall by what they are near to
LINES_MAX = 4 * SLOTS  # of replicas, one for each slot and set of them, that are remembered
SPAN = float(1 << 64)


class Server(Protocol):
    """What is compared of equally good servers; see `Candidate`."""

    @property
    def name(self) -> str: ...
    @property
    def load(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def ttft_s(self) -> float | None: ...


S = TypeVar("S", bound=Server)


class Candidate(NamedTuple):
    """A replica as routing sees it.

    load: streams and requests in flight there, through this gateway.
    tokens: what those likely take, prompts and answers.
    doubtful: most of its streams are silent now.
    refused: its breaker is open, or it came up only just and has to wait, for it went down too often.
    weight: how much it takes beside the others; less than it is configured to where it is much worse than they are.
    ttft_s: when the first token of this request would come there, in seconds; None where nobody predicts it.
    drained: too many of its KV pages went bad.
    other: how far it is from the best for a stream that is to go on there: most if its weights are known to be others
        than those that the stream began with, less if it would have to go on from its ids alone.
    """

    name: str
    up: bool
    standby: bool
    load: int
    doubtful: bool = False
    refused: bool = False
    tokens: int = 0
    weight: float = 1.0
    ttft_s: float | None = None
    drained: bool = False
    other: int = 0


class Slack(NamedTuple):
    """How much more than its share a replica may have before requests that are near to it go elsewhere.

    ratio: of its share of all tokens in flight; tokens: above that, so that a quiet fleet stays where it is.
    late_s: how much later than the soonest one's its first token may be, in seconds.
    """

    ratio: float = 1.25
    tokens: int = 8192
    late_s: float = 0.5


SLACK = Slack()


def pick(
    candidates: Iterable[Candidate],
    avoid: frozenset[str] = frozenset(),
    near: int | None = None,
    slack: Slack = SLACK,
    left_s: float = inf,
    home: str | None = None,
) -> str | None:
    """Choose the replica for the next leg; None when there is none left to try.

    In order: up before down, not refused before refused, sound before drained, undoubted before doubtful, the same
    model before another, active before standby. Among equals of those its home, then the nearest, if that is not
    overloaded, where the request has somewhere to be near to; else the least busy by weight, the first named.
    Those in `avoid` failed this very request and come into question only when no other is up.
    A replica that is held for down, refused or drained is still tried when nothing else is left: that may be stale.
    near: a number that requests of one session, or of one beginning, have in common.
    home: who has what it computed before, as far as is known.
    left_s: by when its first token is due, in seconds from now; among equals, who would be late comes into question
        only when none would be in time.
    """
    known = list(candidates)
    equals = [one for one in known if one.up and one.name not in avoid and not _flawed(one)]
    if not equals:  # which is rare: nobody is as good as can be
        equals = _best_kind(known, avoid)
    return choose(equals, near, slack, left_s, home).name if equals else None


def choose(
    equals: Sequence[S],
    near: int | None = None,
    slack: Slack = SLACK,
    left_s: float = inf,
    home: str | None = None,
) -> S:
    """Choose among servers of one kind, of which there is one at least: see `pick`."""
    if left_s < inf:
        equals = [one for one in equals if one.ttft_s is None or one.ttft_s <= left_s] or equals
    if len(equals) < 2:
        return equals[0]
    if near is not None or home is not None:
        return _nearest(equals, near, slack, home)
    return min(equals, key=_busy)


def soon(first_s: float, near: int | None, slack: Slack, left_s: float) -> bool:
    """Whether who was chosen as if nothing were predicted would also be chosen by what is.

    first_s: when its first token would come, in seconds. It is so early then that no other's could be preferred to it.
    """
    return first_s <= left_s and first_s <= (TTFT_STEP_S / 2 if near is None else slack.late_s)


def roomy(up: list[Candidate], fits: Callable[[str], bool]) -> list[Candidate]:
    """Of replicas that are up, those that have room; not one that is worse than others but for being a standby.

    Who would have to wait for a good server waits for it: one that fails what it is sent is no quicker.
    """
    kinds = [(one.refused, one.drained, one.doubtful) for one in up]
    best = min(kinds, default=(False, False, False))
    return [one for one, kind in zip(up, kinds, strict=True) if kind == best and fits(one.name)]


def _flawed(one: Candidate) -> bool:
    return bool(one.drained or one.refused or one.doubtful or one.other or one.standby)


def _best_kind(known: list[Candidate], avoid: frozenset[str]) -> list[Candidate]:
    usable = [one for one in known if one.up or one.name not in avoid]
    kinds = [
        (not one.up, one.name in avoid, one.refused, one.drained, one.doubtful, one.other, one.standby)
        for one in usable
    ]
    return [one for one, kind in zip(usable, kinds, strict=True) if kind == min(kinds)]


def _busy(one: Server) -> tuple[int, float, float]:
    soon = 0 if one.ttft_s is None else round(one.ttft_s / TTFT_STEP_S)
    return soon, (one.tokens + USUAL) / one.weight, (one.load + 1) / one.weight  # with this one


def _nearest(equals: Sequence[S], near: int | None, slack: Slack, home: str | None) -> S:
    """Take the first in line that has not much more than its share: there is one, for not all are above the mean."""
    weights = [one.weight for one in equals]
    line = () if near is None else _line(near % SLOTS, tuple([one.name for one in equals]), tuple(weights))
    if home is not None:
        line = (*[at for at, one in enumerate(equals) if one.name == home], *line)
        if not line:
            return min(equals, key=_busy)
    first = equals[line[0]]
    if first.tokens <= slack.tokens and first.ttft_s is None:  # whatever its share is
        return first
    share = slack.ratio * sum([one.tokens for one in equals]) / sum(weights)
    in_time_s = min([one.ttft_s for one in equals if one.ttft_s is not None], default=0.0) + slack.late_s
    for at in line:
        one = equals[at]
        if one.tokens <= share * one.weight + slack.tokens and (one.ttft_s is None or one.ttft_s <= in_time_s):
            return one
    return min(equals, key=_busy)  # each is late, or has too much


@lru_cache(maxsize=LINES_MAX)
def _line(slot: int, names: tuple[str, ...], weights: tuple[float, ...]) -> tuple[int, ...]:
    """Line replicas up for all that falls into one slot (weighted rendezvous hashing).

    Each has a number of its own for each slot, and the least is the first: so one that goes leaves the others in their
    order, and one that comes takes only its share. The same in every process.
    """
    distances = []
    for name, weight in zip(names, weights, strict=True):
        drawn = blake2b(name.encode(), digest_size=8, salt=slot.to_bytes(2, "big")).digest()
        distances.append(-log((int.from_bytes(drawn, "big") + 1) / SPAN) / weight)
    return tuple(sorted(range(len(names)), key=distances.__getitem__))
