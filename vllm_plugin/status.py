"""What the plugin has done and in what state it is, put together from what each engine's halves say. Pure.

Counters are totals since the engine started, and those of several workers and engines are added up, as at /metrics: a
page of two workers is two shards, each with its own seal. Of states the worst counts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_plugin.prefix import ASKED, HIT, PREFIX
from vllm_plugin.progress import LAG, QUEUED
from vllm_plugin.refusals import UNPROVED, WEIGHTS, Facts, is_protected
from vllm_plugin.settings import Settings

CORRUPT = "corrupt"  # corrupt.KIND.WHERE
STORE = ("saved", "deduplicated", "shed", "lost", "fenced", "loaded", "missed")
PAGES = ("sealed", "verified", "scrubbed", "evicted", "withdrawn", "saved", "loaded")

Plain = dict[str, Any]  # of what JSON and vLLM's messages carry


@dataclass(frozen=True, slots=True)
class Answer:
    """What one engine says. scheduler: `of_scheduler`; workers: `of_worker` of each."""

    scheduler: Mapping[str, Any]
    workers: Sequence[Mapping[str, Any]]


def of_scheduler(
    settings: Settings, facts: Facts, model: bytes, totals: Mapping[str, float], continues_not: str = ""
) -> Plain:
    """The scheduler half's part. continues_not: why this engine continues no requests, "" where it does."""
    unprotected = [word for word, field, _ in UNPROVED if getattr(facts, field)]
    return {
        "totals": dict(totals),
        "protected": is_protected(facts),
        "unprotected": unprotected + [WEIGHTS] * (WEIGHTS in settings.unprotected),
        "settings": {
            "verify": settings.verify,
            "scrub": settings.scrub_share,
            "on_corruption": "abort" if settings.abort else "recompute",
            "store": settings.store,
        },
        "fingerprint": model.hex(),
        "continues_not": continues_not,
    }


def of_worker(
    resident: int,
    age_s: float,
    totals: Mapping[str, float],
    weights_cycle_s: float | None = None,
    writing: Mapping[str, float] | None = None,
    *,
    continues_not: str = "",
    seeds: bool = True,
) -> Plain:
    """A worker half's part. age_s: of the scrubber's round; weights_cycle_s: of the watchman's, None without one.

    writing: `Progress.states` of its page store, None without one. continues_not: as above; seeds: whether seeded
    requests are continued too.
    """
    return {
        "totals": dict(totals),
        "writing": None if writing is None else dict(writing),
        "resident": resident,
        "scrub_cycle_s": age_s,
        "weights": {"changes": int(totals.get("models_changed", 0)), "cycle_s": weights_cycle_s},
        "continues_not": continues_not,
        "seeds": seeds,
    }


def status(version: str, answers: Sequence[Answer], sampling: Mapping[str, float] | None = None) -> Plain:
    """All of it, as GET /holdfast/status answers it. answers: of one engine at least.

    sampling: what requests get for fields that they leave out, where it is not vLLM's own; None where it is not known.
    """
    workers = [worker for answer in answers for worker in answer.workers]
    schedulers = [answer.scheduler for answer in answers]
    totals: Counter[str] = Counter()
    for half in (*schedulers, *workers):
        totals.update(half["totals"])
    return {
        "version": version,
        "protected": all(half["protected"] for half in schedulers),
        "unprotected": sorted({word for half in schedulers for word in half["unprotected"]}),
        "settings": schedulers[0]["settings"],
        "fingerprint": ",".join(dict.fromkeys(half["fingerprint"] for half in schedulers if half["fingerprint"])),
        "sampling_defaults": None if sampling is None else dict(sampling),
        "weights": {
            "changes": max((worker["weights"]["changes"] for worker in workers), default=0),
            "cycle_s": _most(worker["weights"]["cycle_s"] for worker in workers),
        },
        "pages": {"resident": sum(worker["resident"] for worker in workers)}
        | {name: int(totals[f"pages_{name}"]) for name in PAGES},
        "store": _store(schedulers[0]["settings"]["store"], workers, totals),
        "corrupt": _corrupt(totals),
        "requests": {name: int(totals[f"requests_{name}"]) for name in ("recomputed", "aborted")},
        "chains_broken": int(totals["chains_broken"]),
        "scrub": {"cycle_s": _most(worker["scrub_cycle_s"] for worker in workers)},
        "digest": {"seconds": float(totals["digest_seconds"]), "bytes": int(totals["digest_bytes"])},
        "prefix": {f"{what}_tokens": _prefix(totals, what) for what in (ASKED, HIT)},
    }


def _store(address: str, workers: Sequence[Mapping[str, Any]], totals: Mapping[str, float]) -> Plain | None:
    writing = [worker["writing"] for worker in workers if worker["writing"] is not None]
    if not writing:
        return None
    counts = {name: int(totals[f"pages_{name}"]) for name in STORE}
    return {
        "kind": address.partition(":")[0],
        "queued_pages": int(sum(one[QUEUED] for one in writing)),
        "lag_s": max(one[LAG] for one in writing),
        **counts,
        "failures": int(totals["store_failures"]),
    }


def _corrupt(totals: Mapping[str, float]) -> list[Plain]:
    found = [(name.split("."), number) for name, number in sorted(totals.items())]
    return [
        {"kind": words[1], "where": words[2], "pages": int(number)} for words, number in found if words[0] == CORRUPT
    ]


def _prefix(totals: Mapping[str, float], what: str) -> int:
    return int(sum(number for name, number in totals.items() if name.startswith(f"{PREFIX}.{what}.")))


def _most(numbers: Iterable[float | None]) -> float | None:
    return max((number for number in numbers if number is not None), default=None)
