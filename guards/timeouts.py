"""How long a turn and a session may take, by whose they are. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from guards.refusal import Ending


class Times(NamedTuple):
    """Time limits in seconds; None where nothing is said.

    turn_s: of one request, all its legs together. session_s: of all requests of one session, from its first.
    """

    turn_s: float | None = None
    session_s: float | None = None

    def over(self, usual: "Times") -> "Times":
        """These, and the usual ones where these say nothing."""
        return Times(*(usual if mine is None else mine for mine, usual in zip(self, usual, strict=True)))


UNSAID = Times()


class Due(NamedTuple):
    """When a request must end, by the loop's clock; which limit that is, and how long it was, in seconds."""

    at_s: float
    ending: Ending
    limit_s: float


def tightest(said: Iterable[Times]) -> Times:
    """Of what several say of the same request, the shortest of each."""
    found = [*zip(*said, strict=True)] or [(), ()]
    turn, session = ([limit for limit in of if limit is not None] for of in found)
    return Times(min(turn, default=None), min(session, default=None))


def first_due(times: Times, now_s: float, session_since_s: float | None) -> Due | None:
    """The end that comes first for a request that begins now; None where no limit holds.

    session_since_s: when the first request of its session came; None for one that is of no session.
    """
    dues = []
    if times.turn_s is not None:
        dues.append(Due(now_s + times.turn_s, Ending.TIMEOUT, times.turn_s))
    if times.session_s is not None and session_since_s is not None:
        dues.append(Due(session_since_s + times.session_s, Ending.SESSION, times.session_s))
    return min(dues, default=None)
