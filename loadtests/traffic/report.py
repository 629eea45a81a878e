"""What came of a run: from its records to one JSON, and to one HTML file beside it."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtests.traffic import page, strain
from loadtests.traffic.buckets import quantile_s, together
from loadtests.traffic.options import Sla
from loadtests.traffic.record import ERRORS, Arrival, Lines, Look, Record, Stage, Strain, Tail
from loadtests.traffic.spread import interval

FORMAT, HEAD = 1, "run.json"
QUANTILES = (("p50", 0.5, 1), ("p90", 0.9, 10), ("p99", 0.99, 100), ("p99.9", 0.999, 1000))  # and from how many on
BINS_MAX, SLICES = 60, 10
ERRORS_SHOWN = 20
REFUSALS_SHOWN = 200  # characters


class NoRun(ValueError):
    """A folder in which no run is."""


class Heard:
    """All lines of a run."""

    def __init__(self, lines: Iterable[Lines]) -> None:
        self.records: list[Record] = []
        self.arrivals: list[Arrival] = []
        self.strains: list[Strain] = []
        self.looks: list[Look] = []
        self.lost = 0
        for line in lines:
            self.lost += line.lost
            if line.request is not None:
                self.records.append(line.request)
            if line.arrival is not None:
                self.arrivals.append(line.arrival)
            if line.strain is not None:
                self.strains.append(line.strain)
            if line.look is not None:
                self.looks.append(line.look)
        self.records.sort(key=lambda one: one.sent_s)
        self.looks.sort(key=lambda one: one.at_s)


def write(folder: Path, target: Path) -> Path:
    """Write target (HTML), and beside it the same as JSON; answers target. Raises NoRun."""
    found = summary(head_of(folder), Heard(Tail(folder).read()))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    target.write_text(page.html(found), "utf-8")
    return target


def cleared(folder: Path) -> None:
    """Make the folder; take out of it what an earlier run has left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("process-*.jsonl", "looks.jsonl", HEAD):
        for path in folder.glob(pattern):
            path.unlink()


def head_of(folder: Path) -> dict[str, Any]:
    """What was asked for. Raises NoRun."""
    try:
        found: dict[str, Any] = json.loads((folder / HEAD).read_text())
    except (OSError, ValueError) as error:
        raise NoRun(f"{folder}: no run is there ({error})") from None
    return found


def summary(head: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """All that is reported. Times are in seconds after the run began."""
    sla = Sla(**head["sla"])
    mine = [one for one in heard.records if one.where == "gateway"]
    began_s = head["began_s"]
    sending_s, took_s = _lasted(head, heard.arrivals, mine)
    generator = strain.found(heard.arrivals, heard.records, heard.strains)
    return {
        "format": FORMAT,
        "head": head,
        "took_s": took_s,
        "sending_s": sending_s,
        "lost": heard.lost,
        "generator": generator.as_dict(),
        "rates": _rates(heard.arrivals, mine, sla, sending_s),
        "latency": latency(mine),
        "by_scenario": {
            name: {"stages": _stages(ones), "latency": latency(ones)} for name, ones in _by(mine, "scenario")
        },
        "stages": _stages(mine),
        "failed": sum(one.stage in ERRORS for one in mine),
        "errors": _errors(mine),
        "tokens": _tokens(mine, took_s),
        "tenants": {name: _tenant(ones) for name, ones in _by(mine, "tenant") if name},
        "steps": [_step(number, head, heard.arrivals, mine, sla) for number in range(max(1, len(head["rates_per_s"])))],
        "paired": paired(heard.records),
        "gateway": _gateway(heard.looks, began_s),
        "over_time": _over_time(mine, sla, began_s, took_s, max(1.0, _round(took_s / BINS_MAX))),
        "slices": _over_time(mine, sla, began_s, sending_s, sending_s / SLICES)["bins"][:SLICES],
    }


def latency(records: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """Quantiles of what was whole; those that too few requests tell are None."""
    whole = [one for one in records if one.stage is Stage.WHOLE]
    found = {
        "TTFT": _quantiles([one.first_s for one in whole]),
        "TPOT": _quantiles([one.per_token_s for one in whole]),
        "E2E": _quantiles([one.end_s for one in whole]),
    }
    gaps = together(one.gaps for one in whole)
    total = sum(gaps.values())
    told: dict[str, float | None] = {"count": float(total)}
    told |= {name: quantile_s(gaps, share) if total >= least else None for name, share, least in QUANTILES}
    return found | {"ITL": told, "longest gap": _quantiles([one.gap_max_s for one in whole])}


def paired(records: Sequence[Record]) -> dict[str, Any]:
    """What the gateway adds: differences of the same request, asked at it and at the server itself."""
    pairs: dict[str, dict[str, Record]] = defaultdict(dict)
    for one in records:
        if one.pair and one.stage is Stage.WHOLE:
            pairs[one.pair][one.where] = one
    both = [(found["gateway"], found["direct"]) for found in pairs.values() if len(found) == 2]
    alike = [(one, bare) for one, bare in both if one.tokens == bare.tokens]
    differences = {
        "TTFT": [
            one.first_s - bare.first_s for one, bare in both if one.first_s is not None and bare.first_s is not None
        ],
        "TPOT": [one.per_token_s - bare.per_token_s for one, bare in both if one.per_token_s and bare.per_token_s],
        "E2E": [one.end_s - bare.end_s for one, bare in alike],
    }
    found = {name: interval(values) for name, values in differences.items()}
    broken = len(pairs) - len(both) + sum(name not in pairs for name in {one.pair for one in records if one.pair})
    return {name: one.as_dict() | {"broken": broken} for name, one in found.items() if one is not None}


def _lasted(head: dict[str, Any], arrivals: Sequence[Arrival], records: Sequence[Record]) -> tuple[float, float]:
    """For how long requests came, and until when the last one was over."""
    began_s = head["began_s"]
    last_s = max((one.sent_s + one.end_s for one in records), default=began_s) - began_s
    planned = head["options"].get("each_s", 0) * len(head["rates_per_s"])
    came_s = max([one.sent_s for one in records] + [one.due_s for one in arrivals], default=began_s) - began_s
    return max(1e-3, min(planned, last_s) if planned else came_s), max(1e-3, last_s)


def _rates(
    arrivals: Sequence[Arrival], records: Sequence[Record], sla: Sla, sending_s: float
) -> dict[str, float | int | None]:
    whole = [one for one in records if one.stage is Stage.WHOLE]
    due, begun = len(arrivals), sum(one.begun for one in arrivals)
    return {
        "clients_offered": due,
        "clients_begun": begun,
        "clients_offered_per_s": due / sending_s if due else None,
        "clients_begun_per_s": begun / sending_s if due else None,
        "requests": len(records),
        "requests_per_s": len(records) / sending_s,
        "whole": len(whole),
        "whole_per_s": len(whole) / sending_s,
        "good": (good := sum(map(sla.kept, records))),
        "goodput_per_s": good / sending_s,
        "good_share": good / len(meant) if (meant := _meant(records, sla)) else None,
    }


def _meant(records: Sequence[Record], sla: Sla) -> list[Record]:
    """Those that were meant to be answered whole: neither hung up on nor to be stopped, nor open at the run's end, but
    for those that were too late by then.
    """
    unknown = (Stage.LEFT, Stage.STOPPED, Stage.UNFINISHED)
    return [one for one in records if one.stage not in unknown or sla.broken(one)]


def _step(
    number: int, head: dict[str, Any], arrivals: Sequence[Arrival], records: Sequence[Record], sla: Sla
) -> dict[str, Any]:
    """One of the offered rates."""
    ours = [one for one in records if one.step == number]
    came = [one for one in arrivals if one.step == number]
    rates = head["rates_per_s"]
    lasted_s = head["options"]["each_s"] if rates else max(1e-3, _lasted(head, came, ours)[0])
    return {
        "rate_per_s": rates[number] if rates else None, **_rates(came, ours, sla, lasted_s), "latency": latency(ours),
        "errors": sum(one.stage in ERRORS for one in ours),
    }  # fmt: skip


def _stages(records: Sequence[Record]) -> dict[str, int]:
    return {stage.value: count for stage, count in sorted(Counter(one.stage for one in records).items())}


def _errors(records: Sequence[Record]) -> list[dict[str, Any]]:
    """By stage, status and code; the most frequent first, with the words of the first of each."""
    found: dict[tuple[str, int, str], list[Record]] = defaultdict(list)
    for one in records:
        if one.stage in ERRORS or one.stage is Stage.STOPPED:
            found[(one.stage.value, one.status, one.code)].append(one)
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))[:ERRORS_SHOWN]
    return [
        {"stage": stage, "status": status, "code": code, "count": len(ones), "said": ones[0].said,
         "error": ones[0].stage in ERRORS, "scenarios": sorted({one.scenario for one in ones})}
        for (stage, status, code), ones in ranked
    ]  # fmt: skip


def _tokens(records: Sequence[Record], took_s: float) -> dict[str, Any]:
    sent, cached, came = (
        sum(getattr(one, name) for one in records) for name in ("prompt_tokens", "cached_tokens", "tokens")
    )
    whole = [one for one in records if one.stage is Stage.WHOLE]
    return {
        "prompt": sent,
        "cached": cached,
        "completion": came,
        "prompt_per_s": sent / took_s,
        "completion_per_s": came / took_s,
        "counted_share": sum(one.counted for one in whole) / len(whole) if whole else None,
    }


def _tenant(records: Sequence[Record]) -> dict[str, Any]:
    return {"requests": len(records), "tokens": sum(one.prompt_tokens + one.tokens for one in records),
            "stages": _stages(records), "TTFT": latency(records)["TTFT"]}  # fmt: skip


def _over_time(records: Sequence[Record], sla: Sla, began_s: float, took_s: float, bin_s: float) -> dict[str, Any]:
    """Requests by when they were sent."""
    bins: dict[int, list[Record]] = defaultdict(list)
    for one in records:
        bins[int((one.sent_s - began_s) / bin_s)].append(one)
    found = []
    for number in range(int(took_s / bin_s) + 1):
        ones = bins.get(number, [])
        told = latency(ones)
        found.append(
            {
                "at_s": round(number * bin_s, 3),
                "requests": len(ones),
                "whole": sum(one.stage is Stage.WHOLE for one in ones),
                "good": sum(map(sla.kept, ones)),
                "errors": sum(one.stage in ERRORS for one in ones),
                "goodput_per_s": sum(map(sla.kept, ones)) / bin_s,
                "tokens_per_s": sum(one.tokens for one in ones) / bin_s,
                "gap_max_s": max((one.gap_max_s for one in ones), default=0.0),
                **{name: told[name] for name in ("TTFT", "ITL", "TPOT", "E2E")},
                "tenants": {
                    name: sum(one.prompt_tokens + one.tokens for one in mine)
                    for name, mine in _by(ones, "tenant")
                    if name
                },
            }
        )
    return {"bin_s": bin_s, "bins": found}


def _gateway(looks: Sequence[Look], began_s: float) -> dict[str, Any]:
    """What it said of itself, and how much its counters grew."""
    if not looks:
        return {}
    added = {name: value for name, value in looks[-1].metrics.items() if value}
    edges: list[tuple[float, float]] = [
        (float(name.partition("le=")[2].rstrip("}").split(",")[0]), value)
        for name, value in looks[-1].metrics.items() if name.startswith("holdfast_failover_gap_seconds_bucket")
    ]  # fmt: skip
    cumulative = [(0.0, 0.0), *sorted(edges)]
    budgets = sorted({name for one in looks for name in one.budgets})
    builds = {name for one in looks for name in one.metrics if name.startswith("holdfast_build_info")}
    return {
        "versions": sorted(one.partition("version=")[2].rstrip("}") for one in builds),
        "rss_bytes": [
            (round(one.at_s - began_s, 2), one.metrics["process_resident_memory_bytes"])
            for one in looks if "process_resident_memory_bytes" in one.metrics
        ],
        "failovers": sum(value for name, value in added.items() if name.startswith("holdfast_failovers_total")),
        "failover_gap": [
            {"above_s": low, "upto_s": high if high != float("inf") else None, "count": upto - before}
            for (low, before), (high, upto) in pairwise(cumulative)
        ],
        "refusals": {name.partition("reason=")[2].rstrip("}"): value for name, value in added.items()
                     if name.startswith("holdfast_refusals_total")},
        "budgets": {
            name: [(round(one.at_s - began_s, 2), *one.budgets[name]) for one in looks if name in one.budgets]
            for name in budgets
        },
    }  # fmt: skip


def _quantiles(values: Iterable[float | None]) -> dict[str, float | None]:
    ranked = sorted(one for one in values if one is not None)
    told: dict[str, float | None] = {"count": float(len(ranked))}
    return told | {name: strain.at(ranked, share) if len(ranked) >= least else None for name, share, least in QUANTILES}


def _by(records: Iterable[Record], name: str) -> list[tuple[str, list[Record]]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for one in records:
        found[getattr(one, name)].append(one)
    return sorted(found.items())


def _round(seconds: float) -> float:
    """The next of the lengths that clocks have."""
    return next((float(one) for one in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if seconds <= one), 1800.0)
