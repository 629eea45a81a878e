"""A game day of all scenarios, on real vLLM: which held, and the score."""

import json
import shutil
import subprocess
import sys
import time
from typing import Any

from loadtests.gameday import report
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.score import Verdict
from tests.prove.state import ROOT, SEED, STATE, keep, provenance, results, say

NAME = "gamedays"
START_S_MAX = 900.0  # of the servers, again and again
ENDINGS = (0, 1, 3)  # exit statuses of a day that came to its end


def run() -> None:
    """Run `holdfast gameday --all`."""
    if NAME in results():
        return
    folder = STATE / f"gameday-{time.time_ns()}"
    say("a game day of all scenarios: some ten minutes")
    options = ["--all", "--seed", str(SEED), "--report", str(folder), "--json"]
    command = [sys.executable, "-m", "loadtests.gameday", *options]
    most_s = START_S_MAX + sum(scenario.limit_s for scenario in all_scenarios().values())
    day = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=most_s, check=False
    )
    if day.returncode not in ENDINGS or not day.stdout:
        raise RuntimeError(f"the game day was broken off, with status {day.returncode}")
    said = json.loads(day.stdout)
    for one in said["scenarios"]:
        del one["evidence"]  # its files go with the folder
    keep(NAME, {"on": provenance(), "status": day.returncode, **said})
    shutil.rmtree(folder)


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was seen: each scenario's, the worst first."""
    if NAME not in done:
        return {}
    day = done[NAME]
    held = {
        f"`{one['name']}`: {one['hypothesis']}": one["verdict"] == Verdict.HELD.value for one in day["scenarios"]
    }
    asked = {f"all {day['asked']} scenarios are here": len(day["scenarios"]) == day["asked"]}
    return held | asked | {"nothing was left behind: no process, no folder": not day["left"]}


def lines(done: dict[str, Any]) -> list[str]:
    """The score, and what was tried of each scenario."""
    if NAME not in done:
        return []
    day = done[NAME]
    rows = [
        f"| `{one['name']}` | {one['title']} | {one['weight']} | {one['verdict']} | {_score(one)} | "
        f"{sum(probe['tried'] for probe in one['probes'])} | {one['took_s']:.0f} s |"
        for one in day["scenarios"]
    ]
    return [
        "## `holdfast gameday --all`",
        "",
        f"{day['on']}, seed {day['seed']}, {day['took_s'] / 60:.1f} minutes. {report.headline(day)}. In brackets is "
        "Wilson's interval of 95 % of the worst probe: it says how little few trials are worth. "
        "[Game days](../gameday.md) says what each scenario does.",
        "",
        "| | | weight | | score | trials | took |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "What was probed of each, how many trials held, and what was seen otherwise is in gamedays.json.",
    ]


def _score(one: dict[str, Any]) -> str:
    score, why = one["score"], " ".join(one["why"].replace("|", "/").split())
    said = f"{score['score']:g} ({score['low']:g}–{score['high']:g})" if score else "–"
    return f"{said} {why}".strip()
