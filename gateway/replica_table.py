"""The replicas and what is thought of them: for JSON, and as tables for people (`holdfast replicas`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from gateway.fleet.page_status import Plugin
from gateway.fleet.replica import Replica
from guards import flapping
from guards.breaker import State
from guards.health import Health

COLUMNS = ("replica", "role", "state", "for", "load", "breaker", "waiting", "kv", "preempted", "flaps", "weight", "why")
PAGES = ("replica", "pages", "corrupt", "lately", "fingerprint", "scrub", "continues", "told", "notes")
HEX = 8  # digits of a fingerprint that tell one model from another
UNDRAIN = "Drained replicas stay so until: holdfast replicas --undrain REPLICA; after corrupt pages also: a new engine"
WIDTH = 180  # of a table that is no terminal's
NOBODY: Mapping[str, tuple[int, int]] = {}
STATES = {None: "unknown", True: "up", False: "down"}


def shown(
    replicas: Iterable[Replica], now_s: float, plan: flapping.Plan, lodged: Mapping[str, tuple[int, int]] = NOBODY
) -> list[dict[str, Any]]:
    """Every replica, for JSON. Seconds are by the fleet's clock; None is for what is not known.

    lodged: how many sessions live at each, and how many have their pages loaded there beside.
    """
    return [_shown(one, now_s, plan, *lodged.get(one.name, (0, 0))) for one in replicas]


def _shown(one: Replica, now_s: float, plan: flapping.Plan, sessions: int, hot: int) -> dict[str, Any]:
    gauges, waits = one.gauges, one.trust.waits(now_s)
    breakers = {model: one.breakers[model] for model in sorted(one.breakers)}
    return {
        "replica": one.name,
        "role": "standby" if one.standby else "active",
        "models": [one.model] if one.model is not None else sorted(one.serves),
        "window": {model: one.serves[model] for model in sorted(one.serves)},
        "state": state(one.health, waits, one.drained),
        "ready": state(one.health, waits, one.drained) == STATES[True],
        "why": one.health.why,
        "for_s": round(now_s - one.since_s, 3),
        "trusted_in_s": round(one.trust.from_s - now_s, 3) if waits else 0.0,
        "flaps": one.trust.known(now_s, plan),
        "load": one.load,
        "streams": one.pulse.streams,
        "sessions": sessions,
        "hot_sessions": hot,
        "silent": one.pulse.silent,
        "weight": round(one.beside.weight, 3),
        "worse": one.beside.words,
        "breakers": [
            {
                "model": model,
                "state": breaker.state.value,
                "why": breaker.why,
                "for_s": round(now_s - breaker.since_s, 3),
                "calls": breaker.calls[0],
                "failed": breaker.calls[1],
            }
            for model, breaker in breakers.items()
        ],
        "waiting": gauges and gauges.waiting,
        "kv_used": gauges and gauges.kv_used,
        "preemptions": gauges and gauges.preemptions,
        "gauges_age_s": round(now_s - gauges.at_s, 3) if gauges else None,
        "drained": one.why_drained,
        "apart": {model: list(what) for model, what in sorted(one.apart.items()) if what},
        "pages": _pages(one, now_s),
    }


def _pages(one: Replica, now_s: float) -> dict[str, Any]:
    pages, continues = one.pages, one.continues(now_s)
    told, corruption = pages.status, pages.corruption
    return {
        "plugin": pages.plugin.value,
        "age_s": round(now_s - told.at_s, 3) if told else None,
        "protected": told and told.protected,
        "unprotected": told and list(told.unprotected),
        "versions": told and list(told.versions),
        "fingerprints": told and list(told.fingerprints),
        "corrupt": told and [{"kind": kind, "where": at, "pages": n} for (kind, at), n in told.corrupt.items()],
        "corrupt_lately": corruption.lately(now_s) if told else None,
        "window_s": corruption.plan.window_s,
        "counts": told and dict(told.pages),
        "requests": told and dict(told.requests),
        "chains_broken": told and told.chains_broken,
        "scrub_cycle_s": told and told.scrub_s,
        "weights_cycle_s": told and told.weights_s,
        "weights_changed": told and told.weights_changed,
        "continues": continues and {"seeds": continues.seeds, "refused": sorted(continues.refused)},
        "continues_not": told and told.continues_not,
        "store": told and told.store and {"kind": told.store.kind, "lag_s": told.store.lag_s, **told.store.counts},
    }


def warnings(replicas: Sequence[dict[str, Any]]) -> list[str]:
    """What is to be said of replicas of one model beside each other, as `shown` tells of each."""
    said = []
    for model in dict.fromkeys(model for one in replicas for model in one["models"]):
        known = [(one["replica"], _short(one["pages"])) for one in replicas if model in one["models"]]
        if len({short for _, short in known if short}) > 1:
            which = ", ".join(f"{name} {short}" for name, short in known if short)
            said.append(f"{model}: weights, configuration or layout of its replicas differ: {which}")
        said += [_apart(model, one) for one in replicas if model in one.get("apart", {})]
    for one in replicas:
        if why := one["pages"].get("continues_not"):
            said.append(f"{one['replica']} continues no streams of others by replay: {why}")
    return said


def _apart(model: str, one: dict[str, Any]) -> str:
    what = " and ".join(one["apart"][model])
    kept = "it gets requests, but no stream goes on there that began elsewhere, nor elsewhere one that began there"
    return f"{model}: {one['replica']} has another {what} than most: {kept}"


def state(health: Health, waits: bool, drained: bool = False) -> str:
    """In one word: unknown, up, drained, backing off, down, or hung."""
    if health.up and drained:
        return "drained"
    if health.up and waits:
        return "backing off"
    return "hung" if health.hung else STATES[health.up]


def show(told: dict[str, Any], out: TextIO) -> None:
    """Draw them, as the admin port tells them. Names and reasons are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, width=None if out.isatty() else WIDTH)
    for columns, row in ((COLUMNS, cells), (PAGES, page_cells)):
        table = Table(*columns, box=None)
        for one in told["replicas"]:
            table.add_row(*map(Text, row(one)))
        console.print(table)
        console.print()
    drained = [UNDRAIN] if any(one["drained"] for one in told["replicas"]) else []
    for line in (*drained, *told.get("warnings", ())):
        console.print(Text(line))


def cells(one: dict[str, Any]) -> tuple[str, ...]:
    """What each of COLUMNS shows of a replica."""
    open_ones = [breaker for breaker in one["breakers"] if breaker["state"] != State.ALLOWING]
    reasons = [one["why"], *one["worse"], *(f"{breaker['model']}: {breaker['why']}" for breaker in open_ones)]
    if one["drained"]:
        reasons.append(one["drained"])
    if one["trusted_in_s"]:
        reasons.append(f"trusted in {one['trusted_in_s']:.1f} s")
    return (
        one["replica"],
        one["role"],
        one["state"],
        f"{one['for_s']:.0f} s",
        str(one["load"]),
        ", ".join(sorted({breaker["state"] for breaker in open_ones})) or State.ALLOWING.value,
        _number(one["waiting"], "{:.0f}"),
        _number(one["kv_used"], "{:.0%}"),
        _number(one["preemptions"], "{:.0f}"),
        str(one["flaps"]),
        f"{one['weight']:g}",
        "; ".join(reasons),
    )


def page_cells(one: dict[str, Any]) -> tuple[str, ...]:
    """What each of PAGES shows of a replica."""
    pages = one["pages"]
    if pages["protected"] is None:
        unknown = "?" if pages["plugin"] == Plugin.UNASKED else ""
        return (one["replica"], pages["plugin"], *[unknown] * 6, "")
    guarded = "protected" if pages["protected"] else "unprotected"
    by_kind: dict[str, int] = {}
    for bad in pages["corrupt"]:
        by_kind[bad["kind"]] = by_kind.get(bad["kind"], 0) + bad["pages"]
    notes = [f"{count} {kind}" for kind, count in by_kind.items() if count]
    if pages["unprotected"]:
        notes.append("unprotected: " + " ".join(pages["unprotected"]))
    notes += _stored(one, pages.get("store"))
    return (
        one["replica"],
        Plugin.UNREADABLE if pages["plugin"] == Plugin.UNREADABLE else guarded,
        str(sum(by_kind.values())),
        f"{pages['corrupt_lately']} in {pages['window_s']:g} s",
        _short(pages) or "?",
        _number(pages["scrub_cycle_s"], "{:.1f} s"),
        _continues(pages),
        f"{pages['age_s']:.0f} s ago",
        ", ".join(notes),
    )


def _continues(pages: dict[str, Any]) -> str:
    """Whether it continues streams of others by replay: yes, mostly, or no."""
    said = pages["continues"]
    if said is None:
        return "no"
    return "yes" if said["seeds"] and not said["refused"] else "mostly"


def _stored(one: dict[str, Any], store: dict[str, Any] | None) -> list[str]:
    """What is to be said of the pages that a replica keeps outside of it, and of the sessions that these are of."""
    said = [f"{one['sessions']} sessions"] if one.get("sessions") else []
    said += [f"{one['hot_sessions']} of others kept loaded"] if one.get("hot_sessions") else []
    if store:
        bad = [f"{store[name]} {name}" for name in ("shed", "lost", "fenced") if store[name]]
        said.append(
            ", ".join([f"{store['kind']}: {store['queued_pages']} queued, {store['lag_s']:.1f} s behind", *bad])
        )
    return said


def _short(pages: dict[str, Any]) -> str:
    """The fingerprints of a replica, mostly one."""
    return "+".join(sorted({full[:HEX] for full in pages["fingerprints"] or ()}))


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)
