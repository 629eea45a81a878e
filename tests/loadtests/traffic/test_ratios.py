"""Two runs of `make bench` beside each other: ratios within each, and how far they are apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtests.traffic import compare
from loadtests.traffic.bench_commands import bench_app
from loadtests.traffic.ratios import Sides, load, paired, ratios

FACTS = {"on": "a day", "commit": "one", "rounds": 3, "quick": False, "ids_asked": False, "cores": 2, "machine": "x"}
NEIGHBOURS = (1.0, 1.4, 0.9, 1.1)  # what a look cost times as much for, whoever was looked at


def run(holdfast: float = 0.1, noise: float = 1.0, kb: float = 22.0, **facts: Any) -> dict[str, Any]:
    """What a run saw. holdfast: its seconds of CPU for a thousand; noise: of the whole day."""

    def looks(cpu_s: float) -> list[dict[str, Any]]:
        return [{"units": 1000, "cpu_s": cpu_s * one * noise, "late_ms": [1, 2]} for one in NEIGHBOURS]

    seen = {"direct": {"plain": looks(0.0)}, "holdfast": {"plain": looks(holdfast)}, "nginx": {"plain": looks(0.02)}}
    memory = {name: [{"streams": 1000, "idle": 10**7, "full": 10**7 + int(size * 10**6), "after": 0, "failed": 0}]
              for name, size in (("holdfast", kb), ("nginx", 20.0))}  # fmt: skip
    return FACTS | {"seen": seen, "memory": memory} | facts


def saved(folder: Path, *runs: dict[str, Any]) -> list[str]:
    paths = [folder / f"{number}.json" for number in range(len(runs))]
    for path, one in zip(paths, runs, strict=True):
        path.write_text(json.dumps(one))
    return list(map(str, paths))


def found(folder: Path, *runs: dict[str, Any]) -> dict[tuple[str, str], Any]:
    one, other = (load(Path(path)) for path in saved(folder, *runs))
    assert isinstance(one, Sides)
    assert isinstance(other, Sides)
    return {(each.what, each.other): each for each in ratios(one, other)}


def test_a_ratio_is_of_looks_at_the_same_time():
    """So that a busy neighbour does not count; a look without anything in it is left out, and its partner with it."""
    assert paired([(1000, 0.1), (0, 0.0), (1000, 0.4)], [(1000, 0.2), (1000, 9.0), (1000, 0.8)]) == [0.5, 0.5]
    assert paired([(1000, 5e-324), (1000, 1.0)], [(1000, 1.0), (1000, 5e-324)]) == []


def test_another_day_is_no_difference(tmp_path):
    """All numbers are twice as high, and no ratio has moved."""
    said = found(tmp_path, run(), run(noise=2.0))

    assert said["CPU, plain", "nginx"].before.median == pytest.approx(5.0)
    assert said["CPU, plain", "nginx"].apart == pytest.approx(0.0)
    assert {one.verdict for one in said.values() if one.other == "nginx"} == {"same"}


def test_what_costs_more_is_worse_and_the_other_way_round_better(tmp_path):
    """Beside whom nothing was measured is left out, and who is in one run alone is unknown."""
    worse = found(tmp_path, run(), run(holdfast=0.13, kb=30.0))
    better = found(tmp_path, run(holdfast=0.13), run())

    assert worse["CPU, plain", "nginx"].verdict == "worse"
    assert better["CPU, plain", "nginx"].verdict == "better"
    assert ("CPU, plain", "direct") not in worse
    alone = run()
    del alone["seen"]["nginx"]
    assert found(tmp_path, alone, run())["CPU, plain", "nginx"].verdict == "unknown"


def test_one_look_is_shown_and_not_judged(tmp_path):
    """Memory is looked at once: how far apart that is, but neither better nor worse, and the command ends with 0."""
    said = found(tmp_path, run(), run(kb=30.0))["memory", "nginx"]

    assert (said.verdict, said.apart) == ("unknown", pytest.approx(30 / 22 - 1))
    assert found(tmp_path, run(), run(kb=22.5))["memory", "nginx"].verdict == "same"
    told = CliRunner().invoke(bench_app, ["compare", *saved(tmp_path, run(), run(kb=30.0))])
    assert (told.exit_code, "+36.4%" in told.output) == (0, True)


def test_what_one_run_alone_has_is_there_whichever_it_is(tmp_path):
    """A load, and a gateway whose memory alone was looked at."""
    more = run()
    more["seen"]["holdfast"]["paced"], more["seen"]["nginx"]["paced"] = (
        more["seen"][name]["plain"] for name in ("holdfast", "nginx")
    )
    more["memory"]["smg"] = more["memory"]["nginx"]

    for pair in ((run(), more), (more, run())):
        said = found(tmp_path, *pair)
        assert said["CPU, paced", "nginx"].verdict == said["memory", "smg"].verdict == "unknown"


def test_memory_that_did_not_grow_is_no_measure(tmp_path):
    """Nothing can be a share of nothing."""
    assert found(tmp_path, run(kb=0.0), run())["memory", "nginx"].before is None


def test_runs_that_have_nothing_in_common_cannot_be_compared(tmp_path):
    """Nothing in either, or another gateway in each: a line, and status 2."""
    alone, invoke = run(memory={}), CliRunner().invoke
    del alone["seen"]["nginx"]

    for pair in ((run(seen={}, memory={}), run(seen={}, memory={})), (alone, run())):
        told = invoke(bench_app, ["compare", *saved(tmp_path, *pair)])
        assert (told.exit_code, "nothing was measured in both" in told.output) == (2, True)


def test_the_difference_between_two_processes_of_one_build_is_none(tmp_path):
    """Though no look of the one came out as any of the other."""
    assert found(tmp_path, run(), run(holdfast=0.105))["CPU, plain", "nginx"].verdict == "same"


def test_the_command_shows_ratios_and_ends_with_what_it_found(tmp_path):
    """0 where nothing is worse, 1 where something is, 2 where the runs are of different machines."""
    first, second, third = saved(tmp_path, run(), run(holdfast=0.13), run(cores=4))
    invoke = CliRunner().invoke

    told = invoke(bench_app, ["compare", first, first])
    assert (told.exit_code, "0.0% at most" in told.output) == (0, True)
    told = invoke(bench_app, ["compare", first, second])
    assert (told.exit_code, "nginx" in told.output, "+30.0%" in told.output) == (1, True, True)
    told = invoke(bench_app, ["compare", first, third])
    assert (told.exit_code, "cores: 2 and 4" in told.output) == (2, True)
    told = invoke(bench_app, ["compare", first, third, "--unlike", "--json"])
    assert (told.exit_code, json.loads(told.stdout)["differs"]) == (0, ["cores: 2 and 4"])


def test_what_make_bench_did_not_write_is_told(tmp_path):
    """A run with a part missing, and a run beside a load test: a line, no traceback."""
    half = run()
    del half["rounds"]
    first, broken, other = saved(tmp_path, run(), half, {"format": 1, "slices": []})
    invoke = CliRunner().invoke

    told = invoke(bench_app, ["compare", first, broken])
    assert (told.exit_code, "not the JSON of make bench" in told.output) == (2, True)
    told = invoke(bench_app, ["compare", first, other])
    assert (told.exit_code, "not the JSON of a load report" in told.output) == (2, True)


@pytest.mark.parametrize("load", [load, compare.load])
def test_what_is_nested_too_deeply_is_told(tmp_path, load):
    """Whoever reads it."""
    (tmp_path / "deep.json").write_text("[" * 100_000)

    with pytest.raises(ValueError, match="nested too deeply"):
        load(tmp_path / "deep.json")
