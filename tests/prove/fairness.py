"""By how much one tenant was served more than another while both waited, from the journal alone. Pure.

A token of a prompt weighs INPUT and is counted when its request was sent; one of an answer weighs OUTPUT, and answers
are taken to have come evenly from there to their end.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from guards.fairness import INPUT, OUTPUT

STEP_S = 0.25  # in which answers are counted

Span = tuple[float, float]


class Run(NamedTuple):
    """One request that was sent to a server. Times in unix seconds."""

    user: str
    sent_s: float
    ended_s: float
    prompt: int
    answer: int


class Gap(NamedTuple):
    """widest: weighted tokens, the most in any span of time in which both waited; seconds: of all these together.

    bound: what virtual token counters promise: twice the weight of the longest prompt, or of all that servers held.
    served: weighted tokens of each in all.
    """

    widest: float
    bound: int
    seconds: float
    served: tuple[float, float]


def gap(facts: Iterable[Mapping[str, Any]], one: str, other: str) -> Gap:
    """Compare two users."""
    facts = list(facts)
    runs = _runs(facts)
    both = _common(_waits(facts, one), _waits(facts, other))
    signed = sorted(
        (at_s, tokens if run.user == one else -tokens)
        for run in runs
        if run.user in (one, other)
        for at_s, tokens in _counted(run)
    )
    widest = max((_range(signed, span) for span in both), default=0.0)
    longest = max((run.prompt for run in runs), default=0)
    served = [sum(tokens for run in runs if run.user == user for _, tokens in _counted(run)) for user in (one, other)]
    bound = 2 * max(INPUT * longest, OUTPUT * _held_most(runs))
    return Gap(widest, bound, sum(end_s - start_s for start_s, end_s in both), (served[0], served[1]))


def _runs(facts: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Requests that ran; a request's first leg is when it was sent."""
    sent: dict[str, float] = {}
    found = []
    for fact in facts:
        name = fact.get("request_id")
        if name is None:
            continue
        if fact["kind"] == "leg.opened":
            sent.setdefault(name, fact["at"])
        elif fact["kind"] == "request.settled" and name in sent:
            tokens = fact["prompt_tokens"], fact["completion_tokens"]
            found.append(Run(fact["user"], sent.pop(name), fact["at"], *tokens))
    return found


def _waits(facts: Iterable[Mapping[str, Any]], user: str) -> list[Span]:
    """When some request of a user waited for its turn, in order."""
    spans = []
    for fact in facts:
        if fact["kind"] == "request.settled" and fact["user"] == user:
            came_s = fact["at"] - fact["took_s"]
            waited_s = fact["took_s"] if fact["ending"] == "refused" else fact.get("waited_s", 0.0)
            spans.append((came_s, came_s + waited_s))
    return _union(spans)


def _union(spans: Iterable[Span]) -> list[Span]:
    found: list[Span] = []
    for start_s, end_s in sorted(spans):
        if found and start_s <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end_s)
        elif end_s > start_s:
            found.append((start_s, end_s))
    return found


def _common(ones: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    others = list(others)
    cut = ((max(a[0], b[0]), min(a[1], b[1])) for a in ones for b in others)
    return [(start_s, end_s) for start_s, end_s in cut if end_s > start_s]


def _counted(run: Run) -> list[tuple[float, float]]:
    """What is counted of it, and when."""
    steps = max(1, round((run.ended_s - run.sent_s) / STEP_S))
    each_s = (run.ended_s - run.sent_s) / steps
    output = [(run.sent_s + number * each_s, OUTPUT * run.answer / steps) for number in range(1, steps + 1)]
    return [(run.sent_s, float(INPUT * run.prompt)), *output]


def _range(signed: Iterable[tuple[float, float]], span: Span) -> float:
    """By how much the difference moved within a span, at most."""
    ahead = least = most = 0.0
    for at_s, tokens in signed:
        if span[0] <= at_s <= span[1]:
            ahead += tokens
            least, most = min(least, ahead), max(most, ahead)
    return most - least


def _held_most(runs: Iterable[Run]) -> int:
    """Tokens that all servers together held at once, at most; answers as long as they got."""
    turns = sorted(
        turn
        for run in runs
        for turn in ((run.sent_s, run.prompt + run.answer), (run.ended_s, -run.prompt - run.answer))
    )
    held = most = 0
    for _, tokens in turns:
        held += tokens
        most = max(most, held)
    return most
