"""The README keeps to its size, names only what is there, and shows the figures of the evidence."""

import json
import re
from pathlib import Path

import pytest

from loadtests.bench import readme
from tests.readme import ROOT, commands, section, table

QUICKSTART, GUARANTEES = "Quickstart", "What it promises, and the command that shows it"
WORDS_MAX, LINES = 500, 5
TEXT = (ROOT / "README.md").read_text("utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)#]*)(?:#([^)]*))?\)")


def anchors(file: Path) -> set[str]:
    """What a page's headings are called in links to it."""
    found = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


def test_it_says_in_five_lines_what_it_does():
    """A line for each, none of which is broken into two."""
    lines = TEXT.partition("\n## ")[0].splitlines()

    assert len([line for line in lines if line.startswith("- **")]) == LINES
    assert not [line for line in lines if line.startswith("  ")]


def test_the_quickstart_is_short():
    """Commands and all."""
    assert "holdfast serve" in commands(QUICKSTART)
    assert len(section(QUICKSTART).split()) <= WORDS_MAX


@pytest.mark.parametrize(
    "file", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_leads_somewhere(file):
    """To a file that is there, and to a heading that it has."""
    lost = []
    for path, anchor in LINK.findall(file.read_text("utf-8")):
        to = (file.parent / path).resolve() if path else file
        if path.startswith("http"):
            continue
        if not to.exists() or (anchor and anchor not in anchors(to)):
            lost.append(f"{path}#{anchor}")

    assert lost == []


def test_every_guarantee_names_a_command_that_there_is_and_where_it_is_shown():
    """A target of the Makefile, and a test, a folder of tests or a page of evidence."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    rows = table(GUARANTEES)

    assert len(rows) >= 20
    for row in rows:
        told = re.fullmatch(r"`(make|holdfast) ([a-z]+)[^`]*`", row["command"])
        assert told, row
        assert told[1] == "holdfast" or told[2] in targets, row
        shown = [path for path, _ in LINK.findall(row["where"])] or [row["where"]]
        assert [path for path in shown if not (ROOT / path).exists()] == [], row


def test_its_figures_are_those_of_the_evidence():
    """As `make bench` wrote them."""
    assert readme.shown(TEXT) == readme.lines(json.loads(readme.EVIDENCE.read_text("utf-8")))


def test_a_table_has_what_was_measured_and_a_dash_for_what_was_not():
    """Medians of looks, delays beside the direct ones of their round, memory above idle; peers in order."""
    look = {"units": 2000, "cpu_s": 0.1, "late_ms": [0.5, 3.0]}
    told = {
        "on": "2027-01-01", "cores": 8, "machine": "arm64",
        "seen": {
            "direct": {"paced": [look | {"late_ms": [0.25, 1.0]}]},
            "one": {"plain": [look, look | {"cpu_s": 0.3}, look | {"cpu_s": 9.0}], "paced": [look, look]},
            "another": {"dense": [look], "plain": [look | {"units": 0}]},
        },
        "memory": {"one": [{"streams": 100, "idle": 5_000_000, "full": 7_300_000}]},
    }  # fmt: skip

    said, _, _, _, *rows = readme.lines(told)

    assert said == "2027-01-01, commit –, 8 cores (arm64), Python –, – rounds."
    assert rows == ["| one | 150 (50–4,500) | 50 | +0.25, +2.00 ms | 23 KB |", "| another | – | – | – | – |"]


def test_the_table_is_written_between_its_marks_and_nothing_else_is_touched():
    """As often as one likes."""
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"

    once = readme.written(text, {"seen": {"one": {}}})

    assert readme.shown(once) == readme.lines({"seen": {"one": {}}})
    assert readme.written(once, {"seen": {"one": {}}}) == once
    assert once.startswith(f"before\n{readme.BEGIN}\n")
    assert once.endswith(f"{readme.END}\nafter\n")
