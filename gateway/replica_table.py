"""The replicas and what is thought of them: for JSON, and as a table for people (`holdfast replicas`)."""

from collections.abc import Iterable
from typing import Any, TextIO

from gateway.fleet.replica import Replica
from guards import flapping
from guards.breaker import State
from guards.health import Health

COLUMNS = ("replica", "role", "state", "for", "load", "breaker", "waiting", "kv", "preempted", "flaps", "weight", "why")
WIDTH = 180  # of a table that is no terminal's
STATES = {None: "unknown", True: "up", False: "down"}


def shown(replicas: Iterable[Replica], now_s: float, plan: flapping.Plan) -> list[dict[str, Any]]:
    """Every replica, for JSON. Seconds are by the fleet's clock; None is for what is not known."""
    return [_shown(one, now_s, plan) for one in replicas]


def _shown(one: Replica, now_s: float, plan: flapping.Plan) -> dict[str, Any]:
    gauges, waits = one.gauges, one.trust.waits(now_s)
    breakers = {model: one.breakers[model] for model in sorted(one.breakers)}
    return {
        "replica": one.name,
        "role": "standby" if one.standby else "active",
        "models": [one.model] if one.model is not None else sorted(one.serves),
        "window": {model: one.serves[model] for model in sorted(one.serves)},
        "state": state(one.health, waits),
        "why": one.health.why,
        "for_s": round(now_s - one.since_s, 3),
        "trusted_in_s": round(one.trust.from_s - now_s, 3) if waits else 0.0,
        "flaps": one.trust.known(now_s, plan),
        "load": one.load,
        "streams": one.pulse.streams,
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
    }


def state(health: Health, waits: bool) -> str:
    """In one word: unknown, up, backing off, down, or hung."""
    if health.up and waits:
        return "backing off"
    return "hung" if health.hung else STATES[health.up]


def show(told: dict[str, Any], out: TextIO) -> None:
    """Draw them, as the admin port tells them. Names and reasons are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None)
    for one in told["replicas"]:
        table.add_row(*map(Text, cells(one)))
    Console(file=out, width=None if out.isatty() else WIDTH).print(table)


def cells(one: dict[str, Any]) -> tuple[str, ...]:
    """What each of COLUMNS shows of a replica."""
    open_ones = [breaker for breaker in one["breakers"] if breaker["state"] != State.ALLOWING]
    reasons = [one["why"], *one["worse"], *(f"{breaker['model']}: {breaker['why']}" for breaker in open_ones)]
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


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)
