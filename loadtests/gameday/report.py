"""The report of a run: one JSON file for machines, one HTML file for people, and lines for the terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from loadtests.gameday.score import Outcome, Verdict, total, tried_weight, worst_first
from loadtests.traffic.page import STYLE, table

HTML, JSON = "gameday.html", "gameday.json"
FORMULA = "100 × √(W × G): W is the worst scenario's share, G the weighted geometric mean of all that were tried"
RULES = (
    "A scenario's score is the share of trials that held of its worst probe, with Wilson's interval of 95 %.",
    f"The whole is {FORMULA}. Its interval takes all scenarios at their lower, or upper, ends at once.",
    "What was not tried, had no steady state, or failed by an error of the scenario's own is in neither: it never "
    "counts as passed, and how much weight was tried is told beside the score.",
)


def found(
    outcomes: Sequence[Outcome], *, seed: int, began_s: float, asked: int, left: Sequence[str],
    versions: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """All of it, for JSON. began_s: unix seconds. asked: how many scenarios were to be run; versions: of what with."""
    share = total(outcomes)
    count = {verdict: sum(one.verdict is verdict for one in outcomes) for verdict in Verdict}
    return {
        "score": share and share.as_dict(), "tried_weight": round(tried_weight(outcomes), 3), "formula": FORMULA,
        "asked": asked, **{str(verdict).replace(" ", "_"): number for verdict, number in count.items()},
        "seed": seed, "began": datetime.fromtimestamp(began_s, UTC).isoformat(timespec="seconds"),
        "versions": dict(versions), "took_s": round(sum(one.took_s for one in outcomes), 1),
        "command": " ".join(sys.argv[1:]), "left": list(left),
        "scenarios": [one.as_dict() for one in worst_first(outcomes)],
    }  # fmt: skip


def write(folder: Path, said: dict[str, Any]) -> None:
    """Both files."""
    (folder / JSON).write_text(json.dumps(said, indent=1) + "\n")
    (folder / HTML).write_text(html(said))


def status(said: dict[str, Any]) -> int:
    """0: all that was asked for was tried, and held. 1: something did not, or was left behind. 3: not all was tried."""
    if said["broken"] or said["no_steady_state"] or said["failed"] or said["left"]:
        return 1
    return 0 if said["held"] == said["asked"] else 3


def headline(said: dict[str, Any]) -> str:
    """The score, with all that it must not be told without."""
    score = said["score"]
    if score is None:
        return "No score: no scenario came to a verdict."
    ran = said["held"] + said["broken"]
    return (
        f"Score {score['score']:g} of 100 ({score['low']:g} to {score['high']:g}), of {ran} of {said['asked']} "
        f"scenarios that were asked for, {said['held']} held"
    )


def lines(said: dict[str, Any]) -> list[str]:
    """For a terminal: worst first, then the score."""
    width = max((len(one["name"]) for one in said["scenarios"]), default=0)
    rows = [
        f"{one['name']:{width}}  {_number(one['score']):>17}  weight {one['weight']:>2}  {one['verdict']:15}  "
        + _worst(one)
        for one in said["scenarios"]
    ]
    rows += [f"LEFT BEHIND: {one}" for one in said["left"]]
    return [*(row.rstrip() for row in rows), "", headline(said)]


def html(said: dict[str, Any]) -> str:
    """The whole page: no script, nothing from elsewhere."""
    title = "Game day"
    held = "good" if status(said) == 0 else "bad"
    rows: list[tuple[Any, ...]] = [("scenario", "score", "95 %", "weight", "verdict", "took", "worst probe, or why")]
    for one in said["scenarios"]:
        score = one["score"] or {}
        between = f"{score['low']:g} … {score['high']:g}" if score else "–"
        rows.append((one["title"], f"{score['score']:g}" if score else "–", between, one["weight"], one["verdict"],
                     f"{one['took_s']:g} s", _worst(one)))  # fmt: skip
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="dim">{escape(said["began"])} · {said["took_s"]:g} s · seed {said["seed"]} · '
        f"{escape(said['command'])}</p>",
        f'<p class="dim">Made with {escape(", ".join(map(" ".join, said["versions"].items())))}.</p>',
        f'<p class="{held}">{escape(headline(said))}; {said["tried_weight"]:.0%} of their weight.</p>',
        *(f'<p class="bad">Left behind: {escape(one)}</p>' for one in said["left"]),
        table(rows, left=(0, 4, 6)), *(f'<p class="dim">{escape(rule)}</p>' for rule in RULES),
        *(_section(one) for one in said["scenarios"]),
    ]  # fmt: skip
    begin = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    begin += '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
    begin += f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
    return begin + "\n".join(parts) + "\n</body></html>\n"


def _section(one: dict[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = [("probe", "held", "of", "otherwise seen")]
    rows += [(probe["name"], probe["passed"], probe["tried"], probe["seen"]) for probe in one["probes"]]
    links = " · ".join(f'<a href="{escape(path)}">{escape(path)}</a>' for path in one["evidence"])
    parts = [
        f'<h2 id="{escape(one["name"])}">{escape(one["title"])}</h2>',
        f"<p>Hypothesis: {escape(one['hypothesis'])}.</p>",
        f'<p class="{"good" if one["verdict"] == Verdict.HELD else "bad"}">{escape(one["verdict"])}'
        + (f": {escape(one['why'])}" if one["why"] else "") + "</p>",
        table(rows, left=(0, 3)) if len(rows) > 1 else "",
        f'<p class="dim">weight {one["weight"]}: {escape(one["weight_why"])}</p>',
        f'<p class="dim">evidence: {links}</p>',
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _number(score: dict[str, float] | None) -> str:
    return "–" if score is None else f"{score['score']:g} ({score['low']:g}–{score['high']:g})"


def _worst(one: dict[str, Any]) -> str:
    """Why it is no pass, or the probe that its score is of."""
    if one["why"] or not one["probes"]:
        return str(one["why"])
    probe = min(one["probes"], key=lambda probe: (probe["passed"] / max(1, probe["tried"]), probe["tried"]))
    seen = f" ({probe['seen']})" if probe["seen"] else ""
    return f"{probe['passed']} of {probe['tried']}: {probe['name']}{seen}"
