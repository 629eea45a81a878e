"""Scenario: a hypothesis, a fault that tries it, and how what is seen then is judged.

A scenario is run once, in the main thread: `steady`, `inject`, `observe` may block, and are broken off by an exception
when the scenario's time is over or the operator presses Ctrl-C. So each lets go of what it holds by `finally`, or by
`ground.cleanup`. What they answer are observations: JSON values of a few kilobytes, which go to the journal; the
verdict is reckoned from those alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from loadtests.gameday.ground import Ground

Observations = Mapping[str, Any]


class Missed(Exception):
    """The fault did not hit what it was made for, so that nothing was tried: no verdict on the hypothesis."""


@dataclass(frozen=True, slots=True)
class Probe:
    """So many trials of one claim, and how many of them held.

    Many trials say more than one that sums them up: each stream, each charge, each refusal is a trial.
    seen: what was seen where one did not hold.
    """

    name: str
    passed: int
    tried: int
    seen: str = ""

    def __post_init__(self) -> None:
        assert 0 <= self.passed <= self.tried, self

    @property
    def holds(self) -> bool:
        """Whether it was tried, and always held."""
        return 0 < self.tried == self.passed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def trials(name: str, held: Sequence[bool], said: Sequence[Any] = ()) -> Probe:
    """A probe of as many trials as there are answers. said: of each, what is told where it did not hold."""
    seen = sorted({str(why) for ok, why in zip(held, said, strict=False) if not ok and why})
    return Probe(name, sum(held), len(held), ", ".join(seen))


def unless_missed(why: str, probes: Sequence[Probe]) -> Sequence[Probe]:
    """The probes. Raises Missed where the fault hit nothing (why), and what was tried all the same holds."""
    if why and all(probe.passed == probe.tried for probe in probes):
        raise Missed(why)
    return probes


def clean(faults: Sequence[str]) -> Probe:
    """A probe of a gateway's log. faults: what is in it that must not be, as `Gateway.faults` finds it."""
    return Probe("nothing in the gateway's log that should not be there", int(not faults), 1, ", ".join(faults))


class Scenario(ABC):
    """One fault. Made anew for each run, so that it may keep in itself what its steps share.

    name: as on the command line. title: for people. hypothesis: what must be seen, in one sentence.
    weight: 1 to 10, how much it counts. why: the reason for that weight.
    limit_s: of all its steps together, with restarting what it broke; beyond, it is broken off and has failed.
    fleet: whether it needs the two vLLM servers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hypothesis: ClassVar[str]
    weight: ClassVar[int]
    why: ClassVar[str]
    limit_s: ClassVar[float] = 300.0
    fleet: ClassVar[bool] = True

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def lacking(self) -> str:
        """Why it cannot be tried here, in words; empty where it can. Asked before anything is started."""
        return ""

    @abstractmethod
    def steady(self) -> Observations:
        """Set up, look at how it is without a fault, and say what was seen."""

    @abstractmethod
    def inject(self) -> Observations:
        """Make the fault, and say what was done to whom. What must run while it happens is begun here."""

    @abstractmethod
    def observe(self) -> Observations:
        """See what becomes of it, heal what was broken, and say what was seen."""

    @staticmethod
    @abstractmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        """Whether `steady` saw a system that is well; where a probe does not hold, nothing is injected. Pure."""

    @staticmethod
    @abstractmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        """Whether the hypothesis held: of what `inject` and `observe` said. Pure. Raises Missed."""
