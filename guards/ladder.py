"""What becomes of a request that servers are too busy for: answered less well, in configured order, or refused. Pure.

Nobody's answer is made worse for the sake of others: only who would be refused as it is goes a step down, and only
where that lets it in.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from guards.refusal import Reason, Refused

EASED = (Reason.LATE, Reason.OVERLOADED)  # refusals that a smaller request, or other servers, may spare it


class Step(StrEnum):
    """A way to answer less well. A metric label."""

    RETRIED = "another_replica"  # asked anew, since a server failed before the first byte
    SHORTER = "shorter"
    CHEAPER = "cheaper"  # by another model


class Rung(NamedTuple):
    """One way to answer a request. model: that answers it. steps: what that takes from it."""

    model: str
    steps: tuple[Step, ...] = ()


def rungs(order: Sequence[Step], model: str, instead: Sequence[str], *, long: bool) -> Iterator[Rung]:
    """Every way to ease a request, in order: each step alone as configured, then all together.

    instead: the models that may answer for this one, the best first. long: whether it would be shortened at all.
    """
    steps = [step for step in order if long or step is not Step.SHORTER]
    for step in steps:
        yield from (Rung(one, (step,)) for one in (instead if step is Step.CHEAPER else (model,)))
    if len(steps) > 1:
        yield from (Rung(one, tuple(steps)) for one in instead)


def eased(ways: Iterator[Rung], why: Refused | None, foresee: Callable[[Rung], Refused | None]) -> Rung | None:
    """The first way in which a request would be let in; None where it is to be left as it is.

    why: it would be refused as it is; None where it would not. foresee: the same for a way.
    """
    if why is None or why.reason not in EASED:
        return None
    return next((way for way in ways if foresee(way) is None), None)
