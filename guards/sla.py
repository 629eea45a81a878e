"""What a request is promised, by its size and its key's tier. Pure.

A promise is made of a request's own tokens: a prompt of a hundred thousand takes longer than one of ten, and one
number for both is either empty or broken. So a tier has classes, for small requests first, and each an objective that
grows with what is to be computed.

How often promises are kept is counted in guards/attainment.py.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from guards.attainment import Cell, Verdict, cell
from guards.refusal import Reason, Refused

ASKED_HEADER = "x-slo-ttft-ms"
ASKED_MS_MOST = 600_000
_new = tuple.__new__  # what a NamedTuple's own does, twice as fast


class Slope(NamedTuple):
    """A time that grows with tokens. base_s, token_s: in seconds."""

    base_s: float
    token_s: float = 0.0

    def at(self, tokens: int) -> float:
        """The time for so many."""
        return self.base_s + self.token_s * tokens


class Objective(NamedTuple):
    """What a class promises; None where it promises nothing.

    first: the time to the first token, by tokens of the prompt that have to be computed.
    between_s: the mean time between tokens.
    total: until the last token, by tokens of the answer; longer where the client asks for a later first one.
    """

    first: Slope | None = None
    between_s: float | None = None
    total: Slope | None = None


class ServiceClass(NamedTuple):
    """Requests that are promised the same.

    input_max, output_max: the largest that are of it, in tokens; None for any.
    turn_s: how long one may take before it is ended, in seconds; None where its class sets no limit.
    """

    name: str
    objective: Objective
    input_max: int | None = None
    output_max: int | None = None
    turn_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """What keys of one kind are promised. Raises ValueError where it says nothing sensible.

    classes: those with the tightest bounds first; the first that takes a request is its own.
    asked: the shortest time to the first token that they may ask for; None where they may ask for nothing.
    ends: whether any class limits how long its requests take.
    """

    name: str
    classes: tuple[ServiceClass, ...]
    asked: Slope | None = None
    ends: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", any(one.turn_s is not None for one in self.classes))
        names = [one.name for one in self.classes]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tier {self.name}: classes: name at least one, and each once")
        for one in self.classes:
            if not all(bound is None or bound > 0 for bound in (one.input_max, one.output_max)):
                raise ValueError(f"tier {self.name}: class {one.name}: input_max and output_max are above 0")
            if not all(_sensible(time) for time in _times(one.objective)):
                raise ValueError(f"tier {self.name}: class {one.name}: times are above 0, and grow with tokens")
        if self.asked is not None and not _sensible(self.asked):
            raise ValueError(f"tier {self.name}: asked: times are above 0, and grow with tokens")

    def promise(
        self, input_tokens: int, uncached_tokens: int, output_tokens: int, asked_s: float | None = None
    ) -> "Promise | None":
        """What a request is promised; None where no class takes it, or its class promises nothing.

        uncached_tokens: of its prompt, those that are likely to be computed. output_tokens: that it is likely to have.
        asked_s: a time to the first token that the client asks for. It may always be longer than what its class
        promises, and shorter down to what the tier allows.
        """
        found = self._class(input_tokens, output_tokens)
        if found is None:
            return None
        first, between_s, total = found.objective
        first_s = None if first is None else first.at(uncached_tokens)
        total_s = None if total is None else total.at(output_tokens)
        if asked_s is not None and self.asked is not None:
            meant_s = _clamped(asked_s, self.asked.at(uncached_tokens), first_s)
            if total_s is not None and first_s is not None:
                total_s += max(0.0, meant_s - first_s)
            first_s = meant_s
        if first_s is None and between_s is None and total_s is None:
            return None
        return Promise(found.name, cell(input_tokens, output_tokens), first_s, between_s, total_s)

    def whole(self, input_tokens: int, output_tokens: int) -> "Promise | None":
        """What is promised of an answer that comes as a whole: nobody sees its first token."""
        found = self._class(input_tokens, output_tokens)
        total = None if found is None else found.objective.total
        if found is None or total is None:
            return None
        total_s = total.base_s + total.token_s * output_tokens
        return _new(Promise, (found.name, cell(input_tokens, output_tokens), None, None, total_s))

    def turn_s(self, input_tokens: int, output_tokens: int) -> float | None:
        """How long a request of at most so many tokens may take, in seconds; None where its class sets no limit.

        By what it may come to, not by what is likely: one that comes to more than is likely must not be ended for it.
        """
        found = self._class(input_tokens, output_tokens)
        return None if found is None else found.turn_s

    def _class(self, input_tokens: int, output_tokens: int) -> ServiceClass | None:
        for one in self.classes:
            _, _, input_max, output_max, _ = one
            if (input_max is None or input_tokens <= input_max) and (output_max is None or output_tokens <= output_max):
                return one
        return None


class Deadlines(NamedTuple):
    """Until when what was promised has to come, in seconds of a monotonic clock; None where that is not promised."""

    first_s: float | None
    last_s: float | None


class Promise(NamedTuple):
    """What one request is promised. size: as it was expected. Times in seconds from its arrival on."""

    service_class: str
    size: Cell
    first_s: float | None
    between_s: float | None
    total_s: float | None

    def deadlines(self, arrived_s: float) -> Deadlines:
        """The same as times of the clock that `arrived_s` is of."""
        return Deadlines(
            None if self.first_s is None else arrived_s + self.first_s,
            None if self.total_s is None else arrived_s + self.total_s,
        )

    def judge(self, first_s: float, between_s: float | None, total_s: float) -> Verdict:
        """What became of it, for an answer that was whole. between_s: in the mean; None for an answer of one token."""
        if self.first_s is not None and first_s > self.first_s:
            return Verdict.LATE_FIRST
        if self.between_s is not None and between_s is not None and between_s > self.between_s:
            return Verdict.SLOW
        if self.total_s is not None and total_s > self.total_s:
            return Verdict.LATE_LAST
        return Verdict.KEPT

    def judge_left(self, waited_s: float, first_s: float | None) -> Verdict | None:
        """The same where the client hung up, after so long; None where nothing was broken yet: then it says nothing."""
        if self.first_s is not None and (waited_s if first_s is None else first_s) > self.first_s:
            return Verdict.LATE_FIRST
        if self.total_s is not None and waited_s > self.total_s:
            return Verdict.LATE_LAST
        return None


def asked_s(header: str | None) -> float | None:
    """The time to the first token that a client asks for, in seconds. Raises Refused where the header says none."""
    if header is None:
        return None
    text = header.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 0 < int(text) <= ASKED_MS_MOST):
        detail = f"{ASKED_HEADER} is a whole number of milliseconds, from 1 to {ASKED_MS_MOST}"
        raise Refused(Reason.INVALID, detail, param=ASKED_HEADER)
    return int(text) / 1000


def _clamped(asked: float, least: float, promised: float | None) -> float:
    """A client may be as patient as it likes; as impatient as its tier allows, or as its class is anyway."""
    return max(asked, least if promised is None else min(least, promised))


def _times(objective: Objective) -> list[Slope]:
    between = None if objective.between_s is None else Slope(objective.between_s)
    return [time for time in (objective.first, between, objective.total) if time is not None]


def _sensible(time: Slope) -> bool:
    return 0.0 < time.base_s < float("inf") and 0.0 <= time.token_s < float("inf")
