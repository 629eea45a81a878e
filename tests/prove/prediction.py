"""Predictions on public traces, replayed against simulated engines: how often they hold, and how sharp they are.

    python -m tests.prove.prediction --traces DIR [--busy 0.5 …] [--report]

DIR has Azure's traces of 2023 (*.csv) and Mooncake's (*.jsonl). --report writes docs/evidence/prediction.{md,json}.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tests.prove.report import Report
from tests.prove.state import SEED, STATE, keep, provenance, results, say
from tests.sim.forecast import ENOUGH, FITTED, OFF_MAX, TARGETS, Score, forecast, score
from tests.sim.replay import When, replayed
from tests.sim.traces import Arrival, drawn, traces

NAME = "prediction"
BUSY = (0.5, 0.3, 0.6)  # of the first, each size is told
DRAWN = 6000  # requests of our own making, that need no trace


def measured(arrivals: list[Arrival], busy: float) -> dict[str, Any]:
    """One trace: what was waited, and for each target the scores of all and of each size of prompt."""
    moments = replayed(arrivals, SEED, busy=busy)
    firsts = sorted(one.value_s for one in moments if one.when is When.FIRST and one.value_s is not None)
    found: dict[str, Any] = {"requests": len(arrivals), "first_p50_s": firsts[len(firsts) // 2]}
    for target in TARGETS:
        judged = forecast(moments, target)
        found[target] = {
            "all": score([one for many in judged.values() for one in many]),
            "sizes": {str(bucket): score(many) for bucket, many in judged.items()},
        }
    return found


def run(folder: Path, loads: Sequence[float] = BUSY) -> None:
    """All traces of a folder, and one that is drawn, with each load."""
    done: dict[str, Any] = {"on": provenance(), "loads": {f"{busy:.0%}": {} for busy in loads}}
    for name, arrivals in (*traces(folder), ("drawn", drawn(SEED, DRAWN))):
        for busy in loads:
            done["loads"][f"{busy:.0%}"][name] = measured(arrivals, busy)
        say(f"{name}: {len(arrivals)} requests replayed")
    STATE.mkdir(parents=True, exist_ok=True)
    keep(NAME, done)


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    found = {}
    for load, target in product(done[NAME]["loads"], TARGETS):
        measures = {name: one[target] for name, one in done[NAME]["loads"][load].items()}
        off = [
            f"{name} at {_size(bucket)}: {Score(*said).coverage:.1%}"
            for name, one in measures.items()
            for bucket, said in one["sizes"].items()
            if Score(*said).count >= ENOUGH and not Score(*said).calibrated
        ]
        blunt = [f"{name}: {_ratio(Score(*one['all'])):.3f}" for name, one in measures.items()
                 if not Score(*one["all"]).sharper]  # fmt: skip
        claim = f"{load} busy, {target}: "
        within = f"90 % ± {100 * OFF_MAX:g} % are within, for each size of prompt seen {ENOUGH} times"
        below = "the pinball loss is below the table's, on each trace"
        found[claim + within + (f" ({', '.join(off)})" if off else "")] = not off
        found[claim + below + (f" (of the table's: {', '.join(blunt)})" if blunt else "")] = not blunt
    return found


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    found = [
        "By `python -m tests.prove.prediction --traces DIR`. "
        "Each trace is replayed against as many simulated engines as are so busy with it "
        "(loadtests/batching.py). The table has a p90 for each power of two of input tokens, and is fitted on the "
        f"first {FITTED:.0%} of a trace; the rest is judged. «Refitted» is a table that learns from each outcome. "
        f"A size is off where its coverage is neither within {100 * OFF_MAX:g} % of 90 % nor to be taken for it, by "
        "Wilson's interval. Losses in milliseconds.",
        "",
    ]
    loads = done[NAME]["loads"]
    for target in TARGETS:
        rows = [
            _row(f"{name}, {load} busy, {one['first_p50_s']:.2f} s", Score(*one[target]["all"]))
            for load, many in loads.items()
            for name, one in many.items()
        ]
        found += [f"## {target}", "", *_head("trace, load, median wait for the first token"), *rows, ""]
    load, many = next(iter(loads.items()))
    for name, target in product(many, TARGETS):
        sizes = many[name][target]["sizes"]
        rows = [_row(_size(bucket), Score(*said)) for bucket, said in sizes.items()]
        found += [f"## {target}: {name}, {load} busy, by size", "", *_head("input tokens"), *rows, ""]
    return found


def _head(what: str) -> list[str]:
    return [f"| {what} | judged | within | pinball, ours | table | refitted |", "| --- | --- | --- | --- | --- | --- |"]


def _row(size: str, one: Score) -> str:
    off = "" if one.calibrated or one.count < ENOUGH else " (off)"
    losses = " | ".join(f"{1e3 * loss_s:.2f}" for loss_s in (one.ours_s, one.table_s, one.refitted_s))
    return f"| {size} | {one.count} | {one.coverage:.1%}{off} | {losses} |"


def _size(bucket: str) -> str:
    return f"{1 << int(bucket) >> 1} to {(1 << int(bucket)) - 1}"


def _ratio(one: Score) -> float:
    return one.ours_s / one.table_s


def main() -> None:
    """Replay, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.prediction", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help="the folder that has them")
    parser.add_argument("--busy", type=float, nargs="+", default=BUSY, help="how busy engines are, from 0 to 1")
    parser.add_argument("--report", action="store_true", help="write docs/evidence/prediction.{md,json}")
    given = parser.parse_args()
    if not all(0.0 < busy < 1.0 for busy in given.busy):
        parser.error("--busy is between 0 and 1")
    if not given.traces.is_dir():
        parser.error(f"--traces: {given.traces} is no folder")
    run(given.traces, given.busy)
    done = results()
    if given.report:
        REPORT.write(done)
    else:
        print("\n".join(lines(done)))
    for claim, good in verdicts(done).items():
        print("yes" if good else "NO ", claim, file=sys.stderr)
    sys.exit(not all(verdicts(done).values()))


def _engine() -> str:
    return "simulated engines"


REPORT = Report(NAME, "Prediction: what was measured", _engine, (sys.modules[__name__],), (NAME,))

if __name__ == "__main__":
    main()
