"""Two reports side by side: what is beyond the spread is told, what is not is not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtests.traffic.bench_commands import bench_app
from loadtests.traffic.compare import lines as compared
from loadtests.traffic.compare import unlike
from loadtests.traffic.record import Stage
from loadtests.traffic.report import Heard, summary
from tests.loadtests.traffic.runs import failed, head, lines, whole


def report(seed: int, slower: float = 1.0, errors: int = 0, **more: Any) -> dict[str, Any]:
    """Of twenty seconds, in which first tokens take about 0.2 s, with noise."""
    rng = random.Random(seed)
    records = [
        whole(n / 5, first_s=slower * rng.uniform(0.15, 0.25), token_s=rng.uniform(0.009, 0.011)) for n in range(100)
    ]
    records += [failed(n * 20 / max(1, errors), Stage.MID_STREAM) for n in range(errors)]
    return summary(head(**more), Heard(lines(*records)))


def saved(folder: Path, *reports: dict[str, Any]) -> list[str]:
    paths = [folder / f"{number}.json" for number in range(len(reports))]
    for path, one in zip(paths, reports, strict=True):
        path.write_text(json.dumps(one))
    return list(map(str, paths))


def verdicts(*reports: dict[str, Any]) -> dict[str, str]:
    return {line.name: line.verdict for line in compared(*reports)}


def test_noise_is_no_difference():
    """Two runs of the same thing, of which no measure is the same."""
    assert set(verdicts(report(1), report(2)).values()) == {"same"}


def test_what_is_slower_is_worse_and_the_other_way_round_better():
    """By a fifth; what was not touched stays the same."""
    worse, better = verdicts(report(1), report(2, slower=1.3)), verdicts(report(1, slower=1.3), report(2))

    assert (worse["TTFT p50"], worse["TPOT p50"]) == ("worse", "same")
    assert (better["TTFT p50"], better["TPOT p50"]) == ("better", "same")


def test_errors_are_worse_however_quick_the_rest_was():
    """And goodput counts the other way."""
    assert verdicts(report(1), report(2, errors=40))["failed"] == "worse"
    assert verdicts(report(1, slower=4.0), report(2))["goodput"] == "better"


def test_the_command_ends_with_what_it_found(tmp_path):
    """0 where nothing is worse, 1 where something is, 2 where two different things were measured."""
    same, worse, other = report(1), report(2, slower=1.3), report(3, options={"size": 2.0})
    first, second, third = saved(tmp_path, same, worse, other)
    run = CliRunner().invoke

    assert run(bench_app, ["compare", first, first]).exit_code == 0
    told = run(bench_app, ["compare", first, second])
    assert (told.exit_code, "worse" in told.output) == (1, True)
    told = run(bench_app, ["compare", first, third])
    assert (told.exit_code, "--size: None and 2.0" in told.output) == (2, True)
    told = run(bench_app, ["compare", first, third, "--unlike", "--json"])
    assert (told.exit_code, json.loads(told.stdout)["differs"]) == (0, ["--size: None and 2.0"])


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"users": 20, "rates_per_s": []}, {"users": 200, "rates_per_s": []}, ["users: 20 and 200"]),
        ({"users": 1}, {"users": 8}, []),  # of an open loop: they only say that somebody is there
        ({"options": {"direct": "http://a"}}, {"options": {"direct": ""}}, ["--direct: True and False"]),
        ({"options": {"direct": "http://a"}}, {"options": {"direct": "http://b"}}, []),
        ({"trace_sha256": "aa"}, {"trace_sha256": "bb"}, ["trace_sha256: aa and bb"]),
        ({"options": {"trace": "/here/x"}}, {"options": {"trace": "/there/x"}}, []),
        ({"options": {"tool_calls": True}}, {"options": {"tool_calls": False}}, ["--tool-calls: True and False"]),
        ({"tenants": ["alice"]}, {"tenants": []}, ["tenants: ['alice'] and []"]),
    ],
)
def test_only_what_makes_another_load_is_unlike(one, other, told):
    """Not where a file lies, nor where a server is."""
    assert unlike(report(1, **one), report(2, **other)) == told


def test_the_command_says_whose_generator_was_the_limit(tmp_path):
    """Such a report is a bad witness."""
    one = report(1)
    one["generator"]["limited"] = ["it was"]
    (path,) = saved(tmp_path, one)

    assert "its generator limited it" in CliRunner().invoke(bench_app, ["compare", path, path]).output


BROKEN = ((99, "[1]"), (1, "[]"), (1, "[{}]"))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", *(f'{{"format": {form}, "slices": {slices}}}' for form, slices in BROKEN)]
)
def test_what_is_no_report_is_told(tmp_path, text):
    """By its name; no traceback."""
    path = tmp_path / "x.json"
    path.write_text(text)
    told = CliRunner().invoke(bench_app, ["compare", str(path), str(path)])

    assert (told.exit_code, "not the JSON of a load report" in told.output) == (2, True)
