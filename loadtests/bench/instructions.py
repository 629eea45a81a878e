"""How many instructions an answer and a chunk take:  python -m loadtests.bench.instructions [--help]

Counted by valgrind (Debian: valgrind), so that no neighbour, no other day and no other load of the machine makes a
difference, where times of one run differ by a tenth. It does not see the kernel's part, nor caches that are cold.
Instructions are those of all threads, less what the same gateway takes for as long with nothing to do.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from gateway.local.leashed import LaunchFailed
from loadtests.bench.__main__ import facts, say, upstream
from loadtests.bench.load import Job
from loadtests.bench.peers import Missing, Peer, Place, Recipe
from loadtests.bench.recipes import RECIPES, holdfast
from loadtests.bench.rounds import done

PLAIN = Job(0, stream=False, connections=8, open_s=0.2, window_s=6)
CHUNKS = Job(0, connections=8, every_s=0.05, open_s=2, window_s=4)  # few: it is slow, and what waits comes in one read
LONGER_S = 8.0  # streams a second time, so many seconds longer: only chunks are more of it
IDLE_S = 5.0
TRIES = 2  # a gateway that is so slow may find its servers too slow
WARM_UP_S = 1.0
PEERS = (
    "relay",
    "relay behind aiohttp's server",
    "aiohttp pass-through",
    "holdfast",
    "vllm-router",
)  # smg does too much with nothing to do
CONTROL_S_MAX = 30.0
SUMMARY = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class Counted(msgspec.Struct):
    """Of one gateway, in instructions. idle_per_s: with nothing to do. answers, chunks: how many were counted."""

    plain: float
    chunk: float
    idle_per_s: float
    answers: int
    chunks: int
    version: str = ""


class Counter:
    """Callgrind, about one process. It counts between `begin` and `end`."""

    def __init__(self, out: Path) -> None:
        self._out, self._parts = out, 0
        self._begun_s = 0.0

    def wrap(self, recipe: Recipe) -> Recipe:
        """The same gateway, under valgrind."""
        command = recipe.command
        assert command is not None

        def wrapped(place: Place) -> list[str]:
            options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={self._out}"]
            return ["valgrind", *options, *command(place)]

        return dataclasses.replace(recipe, command=wrapped)

    def begin(self, pid: int) -> None:
        """Count from now on."""
        self._control(pid, "--instr=on")
        self._begun_s = time.monotonic()

    def end(self, pid: int) -> tuple[int, float]:
        """Count no more. How many there were, and for how many seconds it was counted."""
        took_s = time.monotonic() - self._begun_s
        self._control(pid, "--instr=off")
        self._control(pid, "--dump")
        self._parts += 1
        written = self._out.with_name(f"{self._out.name}.{self._parts}")
        until_s = time.monotonic() + CONTROL_S_MAX
        while not (written.exists() and (found := SUMMARY.findall(written.read_text()))):
            if time.monotonic() > until_s:
                raise LaunchFailed(f"callgrind wrote nothing to {written}")
            time.sleep(0.05)
        return int(found[-1]), took_s

    def _control(self, pid: int, what: str) -> None:
        command = ["callgrind_control", what, str(pid)]
        subprocess.run(command, check=True, capture_output=True, timeout=CONTROL_S_MAX)


def counted(peer: Peer, counter: Counter, core: int) -> Counted:
    """Count one gateway."""

    def work(job: Job) -> tuple[float, int]:
        job = msgspec.structs.replace(job, port=peer.place.port, headers=peer.place.headers)
        counter.begin(peer.pid)
        seen = done(job, core)
        instructions, took_s = counter.end(peer.pid)
        if seen.failed:
            raise LaunchFailed(f"{peer.name}: {seen.failed} of {seen.answers} failed: {seen.faults}")
        return instructions - idle_per_s * took_s, seen.answers

    idle_per_s = 0.0
    for job in (PLAIN, CHUNKS):
        work(msgspec.structs.replace(job, window_s=WARM_UP_S))
    counter.begin(peer.pid)
    time.sleep(IDLE_S)
    instructions, took_s = counter.end(peer.pid)
    idle_per_s = instructions / took_s
    plain, answers = work(PLAIN)
    longer = msgspec.structs.replace(CHUNKS, window_s=CHUNKS.window_s + LONGER_S)
    chunks = CHUNKS.connections * (longer.tokens - CHUNKS.tokens)
    less, more = work(CHUNKS)[0], work(longer)[0]
    return Counted(plain / answers, (more - less) / chunks, idle_per_s, answers, chunks, peer.version)


def main() -> None:
    """Count, and tell."""
    given = _given()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    cores = sorted(os.sched_getaffinity(0))
    recipes = [one for one in RECIPES if one.name in given.peers]
    if given.beside is not None:
        recipes.append(Recipe("holdfast beside", holdfast(given.beside.resolve())))
    found: dict[str, Counted] = {}
    begun_s = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-count-")))
        port = stack.enter_context(upstream(folder, cores[-1]))
        for number, recipe in enumerate(recipes):
            for again in range(TRIES):
                try:
                    place = folder / f"{number}-{again}"
                    place.mkdir()
                    counter = Counter(place / "counted")
                    with _started(recipe, counter, port, place, cores) as peer:
                        one = found[recipe.name] = counted(peer, counter, cores[-1])
                except (Missing, LaunchFailed) as why:
                    say(f"{recipe.name}: left out: {why}")
                else:
                    say(f"{recipe.name}: {one.plain:,.0f} an answer, {one.chunk:,.0f} a chunk")
                    break
    _tell(found, {**facts(time.monotonic() - begun_s), "counted": found}, given)


@contextmanager
def _started(recipe: Recipe, counter: Counter, port: int, folder: Path, cores: Sequence[int]) -> Iterator[Peer]:
    peer = Peer(counter.wrap(recipe), port, folder, cores)
    try:
        yield peer
    finally:
        peer.stop()


def _tell(found: dict[str, Counted], said: dict[str, Any], given: argparse.Namespace) -> None:
    lines = ["| | a plain answer | a chunk | idle, a second |", "| --- | --- | --- | --- |"]
    for name, one in found.items():
        named = f"{name} {one.version}".rstrip()
        lines.append(f"| {named} | {one.plain:,.0f} | {one.chunk:,.0f} | {one.idle_per_s:,.0f} |")
    print("\n".join(lines))
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n")
    if given.report is not None:
        given.report.write_text("\n".join([HEADLINE.format(**said), *lines, ""]))


HEADLINE = """# Instructions of gateways, counted

{on} at {commit}, {machine}, Python {python}. Written by `python -m loadtests.bench.instructions`: in user space, of all
threads, by valgrind. docs/performance.md says what follows.
"""


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", nargs="*", default=PEERS, help=f"of: {', '.join(one.name for one in RECIPES)}")
    parser.add_argument("--beside", type=Path, help="another checkout of holdfast, counted as well")
    parser.add_argument("--json", type=Path, help="write every result there")
    parser.add_argument("--report", type=Path, help="write the table there, as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
