"""What a game day's evidence says, of days that nobody had."""

from typing import Any

import pytest

from loadtests.gameday import report
from loadtests.gameday.scenario import Probe
from loadtests.gameday.score import Outcome, Verdict
from tests.prove import gamedays
from tests.prove.report import Report


def day(*outcomes: Outcome, left: tuple[str, ...] = ()) -> dict[str, Any]:
    said = report.found(outcomes, seed=7, began_s=0.0, asked=len(outcomes), left=left, versions={})
    return {gamedays.NAME: {"on": "today at abc", "status": 0, **said}}


def outcome(name: str, verdict: Verdict, passed: int = 8, why: str = "") -> Outcome:
    probes = (Probe("a stream is equal", passed, 8),) if verdict in (Verdict.HELD, Verdict.BROKEN) else ()
    return Outcome(name, f"the {name}", f"{name} is survived", 5, "it happens", verdict, probes, why, 31.0, ("log",))


HELD = outcome("engine-kill", Verdict.HELD)


@pytest.mark.parametrize(
    ("other", "row"),
    [
        (outcome("disk-full", Verdict.BROKEN, passed=4), "| broken | 50 ("),
        (outcome("disk-full", Verdict.NOT_TRIED, why="no disk"), "| not tried | – no disk |"),
        (outcome("disk-full", Verdict.FAILED, why="it was\nover | out"), "| failed | – it was over / out |"),
    ],
    ids=lambda one: str(getattr(one, "verdict", "")),
)
def test_only_what_held_is_a_yes(tmp_path, other, row):
    """A scenario that was not tried is no promise kept; the score says of how many it is."""
    done = day(HELD, other)

    verdicts = gamedays.verdicts(done)
    Report("gamedays", "x", lambda: "y", (gamedays,), (gamedays.NAME,)).write(done, tmp_path)
    text = (tmp_path / "gamedays.md").read_text()

    assert [good for claim, good in verdicts.items() if "disk-full" in claim] == [False]
    assert [good for claim, good in verdicts.items() if "engine-kill" in claim] == [True]
    assert row in text
    assert "of 2 scenarios that were asked for, 1 held" in text


def test_a_part_of_a_day_is_a_no():
    """Though all that was run held."""
    done = day(HELD)
    done[gamedays.NAME]["asked"] = 12

    assert not gamedays.verdicts(done)["all 12 scenarios are here"]


def test_what_was_left_behind_is_a_no():
    """Though every scenario held."""
    assert gamedays.verdicts(day(HELD))["nothing was left behind: no process, no folder"]
    assert not all(gamedays.verdicts(day(HELD, left=("process 7",))).values())


def test_without_a_day_nothing_is_said():
    """Neither a claim nor a line."""
    assert (gamedays.verdicts({}), gamedays.lines({})) == ({}, [])
