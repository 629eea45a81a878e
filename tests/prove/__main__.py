"""The measured proofs behind the promises that take too long for `make test`.

    make prove        or    .venv/bin/python -m tests.prove [kills] [gateway-kills] [soak] … [--fresh]

Each step is a module here: real processes, seeded, every wait bounded. It is kept in .cache/prove/ when it is done, so
that an interrupted run goes on where it was (--fresh starts over). Its report, in words and in JSON, is written to
docs/evidence/ after it.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.prove import (
    alive,
    clean_pages,
    continuations,
    cuts,
    gamedays,
    gateway_kills,
    gateways,
    generators,
    hangs,
    injections,
    kills,
    overload,
    page_costs,
    promises,
    recovery,
    replication,
    runaway,
    session_cuts,
    session_drains,
    session_kills,
    soak,
    store_kills,
    store_speed,
    store_swaps,
    store_trace,
)
from tests.prove.report import Report, vllm_version
from tests.prove.state import STATE, results

STEPS: dict[str, Callable[[], None]] = {
    "cuts-float32": partial(cuts.run, "float32"),
    "cuts-bfloat16": partial(cuts.run, "bfloat16"),
    "kills": kills.run,
    "continuations": continuations.go,
    "continuations-reasoning": partial(continuations.go, reasoning=True),
    "stops": hangs.stops,
    "stalls": hangs.stalls,
    "load": hangs.load,
    "gateway-kills": gateway_kills.run,
    "gateways": gateways.run,
    "overload": overload.run,
    "promises": promises.run,
    "runaway": runaway.run,
    "soak": soak.run,
    "generators": generators.run,
    "gamedays": gamedays.run,
    "injections": injections.run,
    "clean": clean_pages.run,
    "page-costs": page_costs.run,
    "replication": replication.run,
    "session-kills": session_kills.run,
    "session-cuts": session_cuts.run,
    "session-drains": session_drains.run,
    "recovery": recovery.run,
    "store-speed": store_speed.run,
    "store-kills": store_kills.run,
    "store-trace": store_trace.run,
    "store-swaps": store_swaps.run,
}
COUNTED: dict[str, Callable[[int], None]] = {
    "injections": injections.run,
    "clean": clean_pages.run,
    "session-kills": session_kills.run,
    "session-cuts": session_cuts.run,
    "session-drains": session_drains.run,
    "recovery": recovery.run,
    "continuations": continuations.go,
    "continuations-reasoning": partial(continuations.go, reasoning=True),
    "store-speed": store_speed.run,  # MiB
    "store-kills": store_kills.run,
    "store-trace": lambda requests: store_trace.run(None, requests),
}
TRACED: dict[str, Callable[[Path], None]] = {"promises": promises.run, "store-trace": store_trace.run}


def stub() -> str:
    return "the stub upstream of loadtests/"


REPORTS = [
    Report(
        "failover",
        "Failover: what was measured",
        vllm_version,
        (kills, cuts),
        ("cuts-bfloat16", "cuts-float32", "kills"),
    ),
    Report(
        "continuations",
        "Streams that go on by replay: what was measured",
        vllm_version,
        (continuations,),
        continuations.STEPS,
    ),
    Report("hangs", "Hangs: what was measured", vllm_version, (hangs,), ("stops", "stalls", "load")),
    Report("gateway-kills", "kill -9 of the gateway: what was measured", stub, (gateway_kills,), ("gateway-kills",)),
    Report("gateways", "Many gateways on one set of budgets: what was measured", stub, (gateways,), ("gateways",)),
    Report("overload", "Overload: what was measured", stub, (overload,), ("overload",)),
    Report("promises", "Promises under overload: what was measured", vllm_version, (promises,), ("promises",)),
    Report("runaway", "A runaway, and its neighbours: what was measured", stub, (runaway,), ("runaway",)),
    Report("soak", "A soak with random faults: what was measured", stub, (soak,), ("soak",)),
    Report("generators", "Other generators of load: what was seen", stub, (generators,), ("generators",)),
    Report("gamedays", "A game day: what was seen", vllm_version, (gamedays,), ("gamedays",)),
    Report(
        "pages",
        "KV pages: what was measured",
        vllm_version,
        (injections, clean_pages, page_costs),
        ("injections", "clean", "page-costs"),
    ),
    Report(
        "replication", "Replication of KV pages: what was measured", vllm_version, (replication,), ("replication",)
    ),
    Report(
        "sessions",
        "Long conversations that go on elsewhere: what was measured",
        vllm_version,
        (session_kills, session_cuts, session_drains, recovery),
        ("session-kills", "session-cuts", "session-drains", "recovery"),
    ),
    Report(
        "store",
        "The page store: what was measured",
        lambda: "LMDB in shared memory and a real redis-server",
        (store_speed, store_kills, store_trace, store_swaps),
        ("store-speed", "store-kills", "store-trace", "store-swaps"),
    ),
]


def main() -> None:
    """Run what was asked for, or everything, and write the reports."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that servers end, too
    parser = argparse.ArgumentParser(prog="python -m tests.prove")
    parser.add_argument("steps", nargs="*", help=" ".join(STEPS))
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run of these steps has shown")
    parser.add_argument(
        "--trace", type=Path, help="of `promises`, `store-trace`: a file of Azure's (*.csv) or Mooncake's (*.jsonl)"
    )
    parser.add_argument("--count", type=int, help=f"of {', '.join(COUNTED)}: how many, where a few will do")
    given = parser.parse_args()
    if unknown := set(given.steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    steps = given.steps or list(STEPS)
    if given.fresh:
        forget(steps)
    STATE.mkdir(parents=True, exist_ok=True)
    for name in steps:
        if name in TRACED and given.trace:
            TRACED[name](given.trace)
        elif name in COUNTED and given.count:
            COUNTED[name](given.count)
        else:
            STEPS[name]()
        for report in REPORTS:
            if name in report.steps:
                report.write(results())
        if name in alive.STEPS:
            alive.write(results())
    written = [report for report in REPORTS if set(report.steps).intersection(steps)]
    bad = [report.name for report in written if not all(report.verdicts(results()).values())]
    if bad:
        sys.exit("NOT PROVED: see " + ", ".join(f"docs/evidence/{name}.md" for name in bad))


def forget(steps: list[str]) -> None:
    """Start these over."""
    if set(steps) == set(STEPS):
        shutil.rmtree(STATE, ignore_errors=True)
    for name in steps:
        (STATE / f"{name}.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
