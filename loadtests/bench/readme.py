"""The README's table of what was measured, from the evidence, between two marks:  python -m loadtests.bench.readme

`make bench` writes it when it is done. What the evidence does not have is a dash: no figure is typed by hand.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README, EVIDENCE = ROOT / "README.md", ROOT / "docs" / "evidence" / "performance.json"
BEGIN, END = "<!-- measured: written by `make bench` -->", "<!-- end -->"
DIRECT = "direct"  # no gateway at all: what the others are compared with
PLAIN, PACED = "plain", "paced"  # loads
NONE = "–"

Windows = Sequence[Mapping[str, Any]]  # of one peer under one load: one for each look, in order


def main() -> None:
    """Put the table into the README."""
    try:
        told = json.loads(EVIDENCE.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{EVIDENCE}: {error}; `make bench` writes it")
    README.write_text(written(README.read_text("utf-8"), told), "utf-8")


def written(text: str, told: Mapping[str, Any]) -> str:
    """The README with the table of this evidence. Raises ValueError where it has no marks."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return "\n".join([text[:before], *lines(told), text[after:]])


def shown(text: str) -> list[str]:
    """The lines that a README has between its marks."""
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()


def lines(told: Mapping[str, Any]) -> list[str]:
    """When and where it was measured, and a row for each peer: medians over the looks, and the spread of CPU."""
    said = "{on}, commit {commit}, {cores} cores ({machine}), Python {python}, {rounds} rounds."
    known = {name: told.get(name, NONE) for name in ("on", "commit", "cores", "machine", "python", "rounds")}
    head = [
        "",
        "CPU, ms per 1,000 requests",
        "CPU, ms per 1,000 chunks",
        "delay of a chunk, p50, p99",
        "an open stream",
    ]
    return [
        said.format(**known), "",
        f"| {' | '.join(head)} |", "|---|---|---|---|---|",
        *(f"| {' | '.join(_row(told, peer))} |" for peer in told.get("seen", {}) if peer != DIRECT),
    ]  # fmt: skip


def _row(told: Mapping[str, Any], peer: str) -> list[str]:
    loads = told["seen"].get(peer, {})
    direct = told["seen"].get(DIRECT, {}).get(PACED, [])
    added = [_median(_added_ms(loads.get(PACED, []), direct, which), 2) for which in (0, 1)]
    held = told.get("memory", {}).get(peer) or [{}]
    return [
        peer,
        _spread(_cpu_ms(loads.get(PLAIN, []))),
        _spread(_cpu_ms(loads.get(PACED, []))),
        NONE if NONE in added else f"+{added[0]}, +{added[1]} ms",
        _median(_kb(held[0]), 0, " KB"),
    ]


def _cpu_ms(windows: Windows) -> Iterable[float]:
    """For a thousand units, one for each look."""
    return (one["cpu_s"] / one["units"] * 1e6 for one in windows if one.get("units") and one.get("cpu_s"))


def _added_ms(windows: Windows, direct: Windows, which: int) -> Iterable[float]:
    """What a peer adds to a quantile of delay (0: p50, 1: p99), each look beside the direct one of its round."""
    pairs = zip(windows, direct, strict=False)
    return (one["late_ms"][which] - bare["late_ms"][which] for one, bare in pairs if one["units"] and bare["units"])


def _kb(held: Mapping[str, Any]) -> Iterable[float]:
    """Memory above idle for each of the streams that were held open."""
    return [(held["full"] - held["idle"]) / held["streams"] / 1e3] if held.get("streams") else []


def _spread(values: Iterable[float]) -> str:
    """The median, with the smallest and the largest where these differ."""
    found = sorted(values)
    told = [f"{one:,.0f}" for one in (found[0], found[-1])] if found else [NONE, NONE]
    return _median(found, 0) + ("" if told[0] == told[1] else f" ({told[0]}–{told[1]})")


def _median(values: Iterable[float], digits: int, unit: str = "") -> str:
    found = list(values)
    return f"{median(found):,.{digits}f}{unit}" if found else NONE


if __name__ == "__main__":
    main()
