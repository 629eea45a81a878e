"""A game day of all scenarios, on real vLLM: which held, and the score."""

import json
import shutil
import subprocess
import sys
import time
from typing import Any

from loadtests.gameday import report
from loadtests.gameday.score import Verdict
from tests.prove.state import ROOT, SEED, STATE, keep, provenance, results, say

NAME = "gamedays"
DAY_S_MAX = 3600.0  # all limits of all scenarios together, and the servers' start


def run() -> None:
    """Run `holdfast gameday --all`."""
    if NAME in results():
        return
    folder = STATE / f"gameday-{time.time_ns()}"
    say("a game day of all scenarios: some ten minutes")
    options = ["--all", "--seed", str(SEED), "--report", str(folder), "--json"]
    command = [sys.executable, "-m", "loadtests.gameday", *options]
    day = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=DAY_S_MAX, check=False
    )
    if not day.stdout:
        raise RuntimeError(f"the game day ended with status {day.returncode}, and without a report")
    said = json.loads(day.stdout)
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
    return held | {"nothing was left behind: no process, no folder": not day["left"]}


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
    score = one["score"]
    return f"{score['score']:g} ({score['low']:g}–{score['high']:g})" if score else f"– {one['why']}".strip()
