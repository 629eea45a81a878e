"""Runs that nobody made: records, as a run of locust leaves them."""

from typing import Any

from loadtests.traffic.buckets import counted
from loadtests.traffic.record import Arrival, Lines, Look, Record, Stage, Strain

BEGAN_S = 1000.0


def head(**more: Any) -> dict[str, Any]:
    """What was asked for."""
    given = {"each_s": 10.0, "seed": 1} | more.pop("options", {})
    return {
        "began_unix": 1.8e9, "began_s": BEGAN_S, "host": "http://x", "scenarios": ["chat"], "processes": 1, "users": 1,
        "sla": {"ttft": 0.5, "tpot": 0.05, "e2e": None}, "rates_per_s": [1.0, 2.0], "options": given, "tenants": [],
        "model": "m", "versions": {},
    } | more  # fmt: skip


def whole(at_s: float, first_s: float = 0.1, token_s: float = 0.01, tokens: int = 11, **more: Any) -> Record:
    """A request that was answered."""
    last_s = first_s + token_s * (tokens - 1)
    said: dict[str, Any] = {
        "sent_s": BEGAN_S + at_s, "due_s": BEGAN_S + at_s, "scenario": "chat", "stage": Stage.WHOLE, "status": 200,
        "first_s": first_s, "last_s": last_s, "end_s": last_s + 0.001, "gaps": counted([token_s] * (tokens - 1)),
        "gap_max_s": token_s, "prompt_tokens": 100, "cached_tokens": 40, "tokens": tokens, "counted": True,
        "step": int(at_s >= 10),
    }  # fmt: skip
    return Record(**(said | more))


def failed(at_s: float, stage: Stage, **more: Any) -> Record:
    """One that was not."""
    said: dict[str, Any] = {
        "sent_s": BEGAN_S + at_s,
        "scenario": "chat",
        "stage": stage,
        "end_s": 0.1,
        "step": int(at_s >= 10),
    }
    return Record(**(said | more))


def lines(*records: Record, strains: int = 20, looks: tuple[Look, ...] = ()) -> list[Lines]:
    """All lines of a run: each request is a client's first."""
    found = [Lines(request=one) for one in records]
    found += [Lines(arrival=Arrival(due_s=one.sent_s, begun_s=one.sent_s, step=one.step)) for one in records]
    found += [
        Lines(strain=Strain(at_s=BEGAN_S + n, process=0, cpu=0.2, late_max_s=0.001, open=1)) for n in range(strains)
    ]
    return [*found, *(Lines(look=one) for one in looks)]
