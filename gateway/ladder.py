"""How a request is answered that servers are too busy for: shorter, or by a cheaper model, where that lets it in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from gateway.fleet.replicas import Fleet
from gateway.stream.call import Call
from guards.budget import UNLIMITED
from guards.ladder import Rung, Step, eased, rungs
from guards.refusal import Reason, Refused

DEGRADED_HEADER = "x-holdfast-degraded"
NOTHING: Mapping[str, Any] = {}

Headers = tuple[tuple[str, str], ...]
Foresee = Callable[[str, int, int], Refused | None]


class Eased(NamedTuple):
    """What is taken from a request. asked: the model that the client asked for. why: it would have been refused.

    answer_tokens: what each of its choices may have. likely: that it would have had, about.
    """

    steps: tuple[Step, ...] = ()
    asked: str = ""
    why: Reason = Reason.OVERLOADED
    answer_tokens: int = UNLIMITED
    likely: int = 0

    def headers(self, answer_tokens: int, model: str) -> Headers:
        """What the client is told. answer_tokens, model: as they are at last: a breaker may take more."""
        return degraded(min(self.answer_tokens, answer_tokens), self.asked, model)

    def about(self, more: Mapping[str, Any], model: str) -> Mapping[str, Any]:
        """The same for the journal. more: what a breaker has taken."""
        steps = [*self.steps, *(one for one in more.get("degraded", ()) if one not in self.steps)]
        return taken(steps, self.why.value, self.asked, model)


AS_ASKED = Eased()


def degraded(answer_tokens: int, asked: str, model: str) -> Headers:
    """The header that says how an answer is less than what was asked for."""
    said = [f"max_tokens={answer_tokens}"] if answer_tokens < UNLIMITED else []
    said += [f"model={quote(model)}"] if model != asked else []
    return ((DEGRADED_HEADER, ", ".join(said)),)


def taken(steps: Sequence[Step], why: str, asked: str, model: str) -> Mapping[str, Any]:
    """The same as facts."""
    facts: dict[str, Any] = {"degraded": [*steps], "degraded_by": why}
    return facts | ({"asked_model": asked, "model": model} if model != asked else {})


class Ladder:
    """Eases requests. steps: in their order. answer_tokens: of a short answer. cheaper: who answers in whose stead.

    limit: how long a model's prompts may be; None where nobody knows.
    likely: tokens that nine of ten answers of a model to such prompts stay within.
    """

    def __init__(
        self,
        fleet: Fleet,
        steps: Sequence[Step],
        answer_tokens: int,
        cheaper: Mapping[str, str],
        limit: Callable[[str], int | None],
        likely: Callable[[str, int], int],
    ) -> None:
        self._fleet, self._steps, self._answer_tokens = fleet, steps, answer_tokens
        self._cheaper, self._limit, self._likely = cheaper, limit, likely

    def ease(self, call: Call, foresee: Foresee) -> Eased:
        """Say what is taken from a request; where another model is to answer, the call names that one from now on.

        foresee: why admission would refuse it, were it of this model: tokens that its answers have, as asked and given.
        """
        asked = call.model
        likely = self._long(call, asked)
        why = foresee(asked, likely, likely)
        if why is None:
            return AS_ASKED

        def look(way: Rung) -> Refused | None:
            long = self._long(call, way.model)
            return foresee(way.model, long, min(long, self._most(way)))

        ways = rungs(self._steps, asked, self._instead(call), long=likely > self._answer_tokens)
        way = eased(ways, why, look)
        if way is None:
            return AS_ASKED
        if way.model != asked:
            call.model = call.body["model"] = way.model
        return Eased(way.steps, asked, why.reason, self._most(way), self._long(call, way.model))

    def _most(self, way: Rung) -> int:
        return self._answer_tokens if Step.SHORTER in way.steps else UNLIMITED

    def _long(self, call: Call, model: str) -> int:
        """How long each answer of a model is likely, as it was asked for, in tokens."""
        likely = self._likely(model, call.prompt_bound)
        return min(likely, call.max_tokens or likely)

    def _instead(self, call: Call) -> list[str]:
        """The models that could answer it: up, and not too small for its prompt."""
        found, model = [], call.model
        for _ in range(len(self._cheaper)):
            if model not in self._cheaper:
                break
            model = self._cheaper[model]
            limit = self._limit(model)
            if self._fleet.up(model) and (limit is None or call.prompt_bound < limit):
                found.append(model)
        return found
