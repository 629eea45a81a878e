"""The command line of game days, and the report."""

import json
import re
import shutil
import tomllib
from functools import partial
from html import escape
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from loadtests.gameday import commands, report
from loadtests.gameday.commands import gameday_app, play
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.run import Run
from loadtests.gameday.scenario import Probe
from loadtests.gameday.score import Verdict
from tests.loadtests.gameday.fakes import NoFleet, scenario
from tests.readme import ROOT, table

RUN: Any = partial(Run, make_fleet=NoFleet)
RUNNING = {"url": "http://127.0.0.1:1", "model": "m", "faults": {"engine-kill": {"inject": "false", "heal": "true"}}}


def gameday(*said: str) -> tuple[int, str, str]:
    """(exit status, output, errors)"""
    done = CliRunner().invoke(gameday_app, list(said))
    return done.exit_code, done.stdout, done.stderr


def played(tmp_path, *wanted, **more) -> tuple[int, dict[str, Any]]:
    """(exit status, the report)"""
    status = play({one.name: one for one in wanted}, tmp_path / "report", 3, make_run=RUN, **more)
    return status, json.loads((tmp_path / "report" / "gameday.json").read_text())


# ---------------------------------------------------------------- what is asked for


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path):
    """Before anything is started."""
    (tmp_path / "file").touch()

    status, _, err = gameday("--all", "--report", str(tmp_path / "file" / "report"))

    assert status == 2
    assert "Not a directory" in err


@pytest.mark.parametrize(
    ("folder", "why"), [("r" * 300, "File name too long"), ("/sys/kernel/mm", ""), ("/proc/self/fdinfo", "")]
)
def test_a_folder_that_cannot_be_looked_at_or_written_to_is_a_line(folder, why):
    """No traceback, and nothing started."""
    status, _, err = gameday("--all", "--report", folder)

    assert status == 2
    assert err.startswith("holdfast gameday: ")
    assert why in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((), "name scenarios, or say --all"),
        (("--all", "engine-kill"), "name scenarios, or say --all"),
        (("engine-kil",), "no such scenario: engine-kil. There are "),
        (("engine-kill", "--really"), "--really says nothing without --on"),
        (("engine-kill", "--on", "/nowhere.yaml", "--really"), "/nowhere.yaml"),
    ],
)
def test_what_makes_no_sense_is_a_line(said, why):
    """With status 2, and nothing started."""
    status, out, err = gameday(*said)

    assert (status, out) == (2, "")
    assert err.startswith("holdfast gameday: ")
    assert why in err
    assert err.count("\n") == 1


def test_a_folder_that_is_not_empty_is_not_written_over(tmp_path):
    """A report of another day may lie there."""
    (tmp_path / "other").touch()

    status, _, err = gameday("--all", "--report", str(tmp_path))

    assert status == 2
    assert "is there already, and not empty" in err


def test_the_list_names_every_scenario_with_its_weight():
    """For people, a line each; for machines, all that is known of them."""
    known = all_scenarios()

    _, lines, _ = gameday("--list")
    _, told, _ = gameday("--list", "--json")

    assert [line.split()[0] for line in lines.splitlines()] == list(known)
    assert [(one["name"], one["weight"]) for one in json.loads(told)] == [(n, one.weight) for n, one in known.items()]
    for one in json.loads(told):
        assert all(one[name] for name in ("title", "hypothesis", "weight_why", "limit_s")), one
        assert 1 <= one["weight"] <= 10


def test_the_readme_says_what_there_is():
    """Its line is a command that the package declares, with options that this has, and as many scenarios."""
    (row,) = (one for one in table("What it promises, and the command that shows it") if "gameday" in one["command"])
    program, command, *options = row["command"].strip("`").split()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["holdfast.commands"]

    _, told, _ = gameday("--help")

    assert program == "holdfast"
    assert EntryPoint(command, declared[command], "holdfast.commands").load() is gameday_app
    assert options
    assert set(options) <= set(re.findall(r"--[a-z]+", told))
    assert len(all_scenarios()) == 12
    assert any("twelve faults" in cell for cell in row.values())


# ---------------------------------------------------------------- a fleet that serves others


def test_a_running_fleet_is_broken_only_when_told_twice(tmp_path):
    """Without --really nothing is asked and nothing is run."""
    (tmp_path / "on.yaml").write_text(json.dumps(RUNNING))

    status, _, err = gameday("engine-kill", "--on", str(tmp_path / "on.yaml"))

    assert status == 2
    assert "while others may be using it. If that is meant, add --really" in err


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("disk-full", "it needs servers and gateways of its own"),
        ("engine-hang", "the file gives no command for it"),
    ],
)
def test_what_cannot_be_tried_on_a_running_fleet_is_refused_by_name(tmp_path, name, why):
    """With the reason."""
    (tmp_path / "on.yaml").write_text(json.dumps(RUNNING))

    status, _, err = gameday(name, "--on", str(tmp_path / "on.yaml"), "--really")

    assert status == 2
    assert f"{name}: " in err
    assert why in err


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("url: http://x\nmodel: m\nfaults: {disk-full: {inject: a, heal: b}}", "on.yaml:3: faults.disk-full: no "),
        ("url: http://x\nmodel: m\nfaults: {engine-kill: {inject: a}}", "on.yaml:3: faults.engine-kill.heal: "),
        ("url: http://x/v1\nmodel: m", "on.yaml:1: url: "),
        ("url: http://x\nmodel: m\nmodel: n", "on.yaml:3: the same field twice"),
        ("- a list", "the file"),
        ("{", "on.yaml"),
        ("url: http://x\nmodel: [a]", "on.yaml:2: model: Input should be a valid string"),
        ("url: http://x\nmodel: !!int x", "on.yaml:2: tags (!) are not allowed"),
        ("#" * 70_000, "longer than 65536 characters"),
        ("[" * 20_000, "on.yaml:1: nested too deeply"),
        ("url: http://x\nmodel: m\nkey_env: HOLDFAST_NO_SUCH_KEY", "on.yaml:3: key_env: the variable"),
    ],
)
def test_a_file_that_says_nothing_usable_is_a_line(tmp_path, said, why):
    """It names the file and the part of it."""
    (tmp_path / "on.yaml").write_text(said)

    status, _, err = gameday("--all", "--on", str(tmp_path / "on.yaml"), "--really")

    assert status == 2
    assert str(tmp_path / "on.yaml") in err
    assert why in err


# ---------------------------------------------------------------- what came of it


@pytest.mark.parametrize(
    ("wanted", "status", "counts"),
    [
        ([scenario("a"), scenario("b")], 0, {"held": 2}),
        ([scenario("a"), scenario("b", probes=[Probe("p", 7, 8)])], 1, {"held": 1, "broken": 1}),
        ([scenario("a"), scenario("b", lacking="no Redis")], 3, {"held": 1, "not_tried": 1}),
        ([scenario("a"), scenario("b", steady=[Probe("well", 0, 1)])], 1, {"held": 1, "no_steady_state": 1}),
        ([scenario("a"), scenario("b", at={"inject": lambda _: 1 / 0})], 1, {"held": 1, "failed": 1}),
    ],
)
def test_the_exit_status_is_0_only_when_all_was_tried_and_held(tmp_path, wanted, status, counts):
    """What was not tried is no pass, and is counted by its name."""
    got, said = played(tmp_path, *wanted)

    assert got == status
    names = [str(verdict).replace(" ", "_") for verdict in Verdict]
    assert {name: said[name] for name in names if said[name]} == counts
    assert said["asked"] == 2


def test_the_report_has_the_worst_first_with_evidence_and_interval(tmp_path):
    """For machines and for people; the links are to files that are there."""

    def keeps(one):
        (one.ground.folder).mkdir()
        (one.ground.folder / "seen.log").write_text("seen")

    bad = scenario("bad", probes=[Probe("equal <all>", 4, 8, "cut & lost")], at={"observe": keeps})

    _, said = played(tmp_path, scenario("good"), bad)
    html = (tmp_path / "report" / "gameday.html").read_text()

    assert [one["name"] for one in said["scenarios"]] == ["bad", "good"]
    assert said["scenarios"][0]["score"] == {"score": 50.0, "low": 21.5, "high": 78.5}
    assert said["score"]["low"] < said["score"]["score"] < said["score"]["high"]
    assert html.index("a fake called bad") < html.index("a fake called good")
    assert "equal &lt;all&gt;" in html
    assert "cut &amp; lost" in html
    assert "<script" not in html
    for one in said["scenarios"]:
        assert one["evidence"][0] == "gameday.jsonl"
        for path in one["evidence"]:
            assert (tmp_path / "report" / path).is_file()
            assert f'href="{path}"' in html
    assert escape(report.FORMULA) in html
    assert f"python {said['versions']['python']}, " in html
    assert said["versions"]["holdfast"]


def test_a_score_is_never_told_without_what_was_not_tried(tmp_path, capsys):
    """One whole scenario of two that were asked for: a hundred, of one of two."""
    played(tmp_path, scenario("a"), scenario("b", lacking="no Redis"))

    out = capsys.readouterr().out

    assert "Score 100 of 100 (67.6 to 100), of 1 of 2 scenarios that were asked for, 1 held" in out
    assert "not tried" in out
    assert "no Redis" in out


def test_json_is_alone_on_stdout(tmp_path, capsys):
    """Progress goes elsewhere."""
    _, said = played(tmp_path, scenario("a"), as_json=True)

    out, err = capsys.readouterr()

    assert json.loads(out) == said
    assert "[1 of 1] a: a fake called a" in err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_folder_that_is_gone_at_the_end_is_a_line(tmp_path, capsys, as_json):
    """What there is to report is told all the same, and it is no clean end."""
    gone = scenario("a", at={"observe": lambda _: shutil.rmtree(tmp_path / "report")})

    status = play({"a": gone}, tmp_path / "report", 3, make_run=RUN, as_json=as_json)

    out, err = capsys.readouterr()
    assert status == 1
    assert f"the report cannot be written: {tmp_path}/report: No such file or directory" in (err if as_json else out)
    if as_json:
        assert json.loads(out.splitlines()[-1])["held"] == 1


def test_what_is_logged_is_not_among_the_json(tmp_path, monkeypatch):
    """Such as a journal that cannot be written."""

    def play(*_: Any) -> int:
        structlog.get_logger().error("journal.write_failed")
        print("{}")
        return 0

    monkeypatch.setattr(commands, "play", play)
    try:
        status, out, err = gameday("engine-kill", "--json", "--report", str(tmp_path))
    finally:
        structlog.reset_defaults()

    assert (status, out) == (0, "{}\n")
    assert "journal.write_failed" in err
