"""What a gateway costs, measured side by side:  make bench   or   python -m loadtests.bench [--help]

A cheap upstream and the clients share one core, each gateway has the other to itself. Loads are interleaved in random
order, so that a busy machine is busy for all; compare rows of one run, never numbers of two.
"""

import argparse
import os
import platform
import random
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gateway.local.leashed import LaunchFailed, Leashed
from loadtests.bench import report
from loadtests.bench.peers import ROOT, Missing, Peer, Recipe, pinned
from loadtests.bench.recipes import RECIPES, holdfast
from loadtests.bench.rounds import HELD, LOADS, Bench, Results

ROUNDS = 3
FILES_PER_STREAM = 2  # of a gateway: one to the client, one to the upstream
FILES_BESIDES = 400
OPENED_PER_S = 1000  # of the streams that are held
WRITTEN = ("README.md", "docs/evidence")  # by `make bench` itself: that they differ says nothing of what was measured


def main() -> None:
    """Measure, and tell."""
    given = _given()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the gateway, one for the upstream and its clients")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    streams = min(given.streams, (hard - FILES_BESIDES) // FILES_PER_STREAM)
    seed = given.seed if given.seed is not None else random.randrange(1 << 32)
    loads = [load.quick() if given.quick else load for load in LOADS if not given.loads or load.name in given.loads]
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        port = stack.enter_context(upstream(folder, cores[1]))
        bench = Bench(list(_peers(stack, given, port, folder, cores)), cores[1], given.ids, say)
        bench.rounds(loads, given.rounds, random.Random(seed))
        if streams:
            held = msgspec.structs.replace(HELD, connections=streams, open_s=streams / OPENED_PER_S)
            if given.quick:
                bench.hold(msgspec.structs.replace(held, window_s=0.5), calm_s=0.2)
            else:
                bench.hold(held)
    said = facts(time.monotonic() - begun) | {
        "command": shlex.join(["python", "-m", "loadtests.bench", *sys.argv[1:]]),
        "rounds": given.rounds, "seed": seed, "ids_asked": given.ids, "quick": given.quick,
    }  # fmt: skip
    _tell(bench.results, {load.name: load.unit for load in loads}, said, given)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--streams", type=int, default=HELD.connections, help="held open for their memory; 0: none")
    parser.add_argument("--ids", action="store_true", help="every client asks for token ids")
    parser.add_argument("--peers", nargs="*", help=f"of: {', '.join(one.name for one in RECIPES)}")
    parser.add_argument("--loads", nargs="*", help=f"of: {', '.join(one.name for one in LOADS)}")
    parser.add_argument("--beside", type=Path, help="another checkout of holdfast, measured beside this one")
    parser.add_argument("--seed", type=int, help="of the order")
    parser.add_argument("--quick", action="store_true", help="only to see that it works; the figures mean nothing")
    parser.add_argument("--json", type=Path, help="write every result there")
    parser.add_argument("--report", type=Path, help="write the tables there, as Markdown")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.streams = 1, min(given.streams, 50)
    return given


def _peers(stack: ExitStack, given: argparse.Namespace, port: int, folder: Path, cores: list[int]) -> Iterator[Peer]:
    recipes = [one for one in RECIPES if (one.name in given.peers if given.peers else not one.named)]
    if given.beside is not None:
        recipes.append(Recipe("holdfast beside", holdfast(given.beside.resolve())))
    for recipe in recipes:
        begun = time.monotonic()
        try:
            peer = Peer(recipe, port, folder, cores)
        except Missing as missing:
            say(f"{recipe.name}: left out: {missing}")
            continue
        except LaunchFailed as failed:
            if recipe.version is None:
                raise
            say(f"{recipe.name}: left out: {failed}")
            continue
        stack.callback(peer.stop)
        say(f"{recipe.name}: there after {time.monotonic() - begun:.1f} s")
        yield peer


@contextmanager
def upstream(folder: Path, core: int) -> Iterator[int]:
    """A block in which the cheap upstream runs; its port."""
    log = folder / "upstream.log"
    command = [sys.executable, "-m", "loadtests.bench.upstream", str(folder / "port")]
    with pinned(core):
        process = Leashed("the upstream", command, log=log, environment=os.environ | {"PYTHONPATH": str(ROOT)}).start()
    try:
        until = time.monotonic() + 10.0
        while not (folder / "port").exists():
            if time.monotonic() > until or not process.alive:
                raise process.failure("does not listen")
            time.sleep(0.02)
        yield int((folder / "port").read_text())
    finally:
        process.stop()


def facts(took_s: float) -> dict[str, Any]:
    """When, where and of which commit a result is."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--short", "HEAD") or "unknown"
    dirty = git("status", "--porcelain", "--", ".", *(f":!{one}" for one in WRITTEN))
    return {
        "on": f"{datetime.now(UTC):%Y-%m-%d}", "commit": head + "-dirty" * bool(dirty), "cores": os.cpu_count(),
        "machine": platform.machine(), "python": platform.python_version(), "took_s": round(took_s),
    }  # fmt: skip


def _tell(results: Results, units: dict[str, str], about: dict[str, Any], given: argparse.Namespace) -> None:
    tables = [table for table in report.tables(results, units) if table.rows[1:]]
    verdicts = report.verdicts(results)
    lines = [f"- {'yes' if good else 'NO'}: {said}" for said, good in verdicts.items()]
    print("\n".join(map(report.markdown, tables)).replace("**", ""))
    print("\n".join(lines))
    if given.json is not None:
        seen = {"versions": results.versions, "seen": results.seen, "memory": results.memory}
        said = {**about, "verdicts": verdicts, **seen}
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")
    if given.report is not None:
        given.report.write_text("\n".join([HEADLINE.format(**about), *lines, "", *map(report.markdown, tables)]))
    if any(one.failed for ones in results.seen.get(report.HOLDFAST, {}).values() for one in ones):
        sys.exit("some answers were not whole: nothing above counts")


HEADLINE = """# What it costs: measured side by side

{on} at {commit}, {cores} cores, {machine}, Python {python}; {rounds} rounds in random order, seed {seed}.
docs/performance.md says how it is measured. Median (smallest..largest). Compare rows, not runs. Written by
`{command}`
"""


def say(note: str) -> None:
    """Tell how far it is."""
    print(f"[{note}]", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
