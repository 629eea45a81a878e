"""What was promised and kept: for JSON, and as a table for people (`holdfast sla`)."""

from collections.abc import Mapping
from typing import Any, TextIO

from guards.attainment import Attainment, Kept, Row, Verdict

WIDTH = 120  # of a table that is no terminal's
WORST_SHOWN = 10  # sizes of requests


def shown(attainment: Attainment, waiting: int) -> dict[str, Any]:
    """All that is known, for JSON: classes, sizes of requests, and the worst of those. waiting: requests, now."""
    rows = attainment.rows()
    names = list(dict.fromkeys(row.service_class for row in rows))
    worst = attainment.worst()
    return {
        "waiting": waiting,
        "classes": [_class(attainment, name) for name in names],
        "sizes": [_row(row) for row in rows],
        "worst": None if worst is None else _row(worst),
    }


def _class(attainment: Attainment, name: str) -> dict[str, Any]:
    broken = {str(what): times for what, times in attainment.verdicts(name).items() if what is not Verdict.KEPT}
    return {"class": name, **_kept(attainment.kept(name)), "broken": broken}


def _row(row: Row) -> dict[str, Any]:
    size = {"input_tokens": _tokens(row.size.input), "output_tokens": _tokens(row.size.output)}
    return {"class": row.service_class, **size, **_kept(row.kept)}


def _kept(kept: Kept) -> dict[str, Any]:
    low, high = kept.interval
    share = kept.kept / kept.made if kept.made else None
    return {"made": kept.made, "kept": kept.kept, "share": share, "low": low, "high": high}


def _tokens(bucket: int) -> list[int]:
    """The least and the most tokens of a bucket; see `guards.attainment.Cell`."""
    return [1 << bucket - 1, (1 << bucket) - 1] if bucket else [0, 0]


def show(told: Mapping[str, Any], out: TextIO) -> None:
    """Print it: every class, and the sizes that fare worst."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=out, width=None if out.isatty() else WIDTH, highlight=False)
    if not told["classes"]:
        console.print("Nothing was promised yet: name tiers with classes in the configuration (docs/admission.md).")
        return
    table = Table(box=None)
    for column in ("class", "promises", "kept", "95 %", "broken, by what"):
        table.add_column(column)
    for one in told["classes"]:
        broken = ", ".join(f"{what} {times}" for what, times in one["broken"].items() if times) or "–"
        table.add_row(one["class"] or "(others)", f"{one['made']:,}", *_share(one), broken)
    console.print(table)
    sizes = sorted((row for row in told["sizes"] if row["class"]), key=lambda row: (row["high"], -row["made"]))
    table = Table(box=None, title="Sizes that fare worst, by where their share may be at most", title_justify="left")
    for column in ("class", "input tokens", "output tokens", "promises", "kept", "95 %"):
        table.add_column(column)
    for row in sizes[:WORST_SHOWN]:
        spans = ["–".join(f"{tokens:,}" for tokens in row[kind]) for kind in ("input_tokens", "output_tokens")]
        table.add_row(row["class"], *spans, f"{row['made']:,}", *_share(row))
    console.print()
    console.print(table)
    console.print(f"\n{told['waiting']:,} requests wait for a server now.")


def _share(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{100 * one['share']:.1f} %", f"{100 * one['low']:.1f}–{100 * one['high']:.1f} %"
