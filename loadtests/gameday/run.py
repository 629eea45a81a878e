"""A run: scenarios one after the other on one fleet, each fact of them in the journal, nothing left behind."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gateway.books.journal import Journal
from loadtests.gameday.bounds import TimeIsUp, sheltered, within
from loadtests.gameday.fleet import Fleet
from loadtests.gameday.ground import Ground
from loadtests.gameday.scenario import Missed, Probe, Scenario
from loadtests.gameday.score import Outcome, Verdict, judged
from loadtests.gameday.streams import Clients

JOURNAL, FLEET = "gameday.jsonl", "fleet"
LAST_S_MAX = 5.0  # for what was ended to be gone
SAID_MAX = 400  # characters of an error that become part of a verdict
Say = Callable[[str], None]


class Run:
    """From `with` to its end; `outcomes` grows with each scenario, also of a run that is broken off.

    folder: of the report and all evidence. seed: of all chance. say: tells the operator how far it is.
    on: a fleet that serves others. make_fleet: how our own is made, for tests.
    """

    def __init__(
        self, folder: Path, seed: int, say: Say, *, on: Any = None, make_fleet: Callable[..., Fleet] = Fleet
    ) -> None:
        self.folder, self.seed, self.outcomes = folder, seed, list[Outcome]()
        self.left: list[str] = []
        self._say, self._on, self._make_fleet = say, on, make_fleet
        self._stack = ExitStack()
        self._others = _children()  # that whoever runs this had already: none of ours

    def __enter__(self) -> "Run":
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._stack:
            self._journal = Journal(self.folder / JOURNAL, time.time)
            self._stack.callback(self._journal.close)
            self._scratch = Path(tempfile.mkdtemp(prefix="holdfast-gameday-"))
            self._stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._clients = self._stack.enter_context(Clients())
            self._fleet = self._make_fleet(self.folder / FLEET, self._scratch, self._say)
            self._stack.callback(self._fleet.close)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with sheltered():
            if error is not None and not isinstance(error, Exception):
                with suppress(SystemExit, OSError):  # nobody may listen any more: Rich ends a program at a broken pipe
                    self._say("broken off: what was started is ended")
            self._note("gameday.ended", scenarios=len(self.outcomes), broken_off=error is not None)
            try:
                self._stack.close()
            except Exception as stuck:  # the rest is ended all the same, and the report is still to be written
                self.left.append(f"not ended: {type(stuck).__name__}: {stuck}"[:SAID_MAX])
            self.left += left_behind(self._scratch, self._others)
            if self._journal.lost:
                self.left.append(f"{self._journal.lost} facts that {JOURNAL} does not have")

    def scenario(self, wanted: type[Scenario]) -> Outcome:
        """Run one, from its hypothesis to its verdict, and undo what it did."""
        began_s = time.monotonic()
        self._note(
            "gameday.hypothesis", wanted.name, hypothesis=wanted.hypothesis, weight=wanted.weight,
            weight_why=wanted.why, seed=self.seed, limit_s=wanted.limit_s,
        )  # fmt: skip
        folder = self.folder / wanted.name
        scratch = self._scratch / wanted.name
        scratch.mkdir()
        ground = Ground(wanted.name, self.seed, folder, scratch, self._fleet, self._clients, self._say, self._on)
        try:
            verdict, probes, why = self._tried(wanted(ground), wanted)
        finally:
            with sheltered():
                undone = self._undone(ground, wanted.name)
        if undone:
            verdict = Verdict.FAILED if verdict is Verdict.HELD else verdict
            why = "; ".join(filter(None, (why, undone)))
        folders = [folder, self.folder / FLEET] if wanted.fleet and self._on is None else [folder]
        files = (path for one in folders for path in sorted(one.rglob("*")) if path.is_file())
        evidence = [str(path.relative_to(self.folder)) for path in files]
        outcome = Outcome(
            wanted.name, wanted.title, wanted.hypothesis, wanted.weight, wanted.why, verdict, tuple(probes), why,
            time.monotonic() - began_s, (JOURNAL, *evidence),
        )  # fmt: skip
        told = outcome.as_dict()
        self._note(
            "gameday.verdict", wanted.name, **{name: told[name] for name in ("verdict", "why", "score", "probes")}
        )
        self.outcomes.append(outcome)
        return outcome

    def _tried(self, scenario: Scenario, wanted: type[Scenario]) -> tuple[Verdict, Sequence[Probe], str]:
        """Its steps. What is seen after the fault can break the hypothesis; what comes before it ends the try."""
        if why := (self._fleet.lacking() if wanted.fleet and self._on is None else "") or scenario.lacking():
            return Verdict.NOT_TRIED, (), why
        otherwise = Verdict.NO_STEADY_STATE
        try:
            if wanted.fleet and self._on is None:
                self._fleet.ready()
            with within(wanted.limit_s):
                self._say("looking at the steady state")
                steady = scenario.steady()
                self._note("gameday.steady_state", wanted.name, seen=steady)
                if judged(before := wanted.judge_steady(steady)) is not Verdict.HELD:
                    return otherwise, before, "; ".join(_told(probe) for probe in before if not probe.holds)
                self._say("making the fault")
                otherwise = Verdict.FAILED  # but for a fault that is made, and looked at, bit by bit
                injected = scenario.inject()
                self._note("gameday.injected", wanted.name, done=injected)
                self._say("looking at what becomes of it")
                otherwise = Verdict.BROKEN
                seen = scenario.observe()
                self._note("gameday.observed", wanted.name, seen=seen)
            probes = wanted.judge(injected, seen)
            return judged(probes), probes, ""
        except Missed as missed:
            return Verdict.FAILED, (), str(missed)
        except TimeIsUp:
            otherwise = Verdict.BROKEN if scenario.ground.damaged else otherwise
            return otherwise, (), f"it was not over after {wanted.limit_s:g} s"
        except Exception as error:  # of whatever kind: it is told, and never a pass
            otherwise = Verdict.BROKEN if scenario.ground.damaged else otherwise
            return otherwise, (), f"{type(error).__name__}: {error}"[:SAID_MAX]

    def _undone(self, ground: Ground, name: str) -> str:
        """Undo what a scenario did; why that was not possible, where it was not."""
        ground.cleanup.callback(self._clients.hang_up)  # before all else, and all else although it takes too long
        try:
            ground.cleanup.close()
        except Exception as error:
            undone = f"not cleaned up: {type(error).__name__}: {error}"[:SAID_MAX]
            self.left.append(f"{name}: {undone}")
        else:
            undone = ""
        shutil.rmtree(ground.scratch, ignore_errors=True)
        self._note("gameday.cleaned", name, left=undone)
        return undone

    def _note(self, kind: str, scenario: str = "", **fields: Any) -> None:
        about: Mapping[str, Any] = {"scenario": scenario} if scenario else {}
        self._journal.append(kind, about, json.loads(json.dumps(fields, default=str)))


def left_behind(scratch: Path, others: Collection[str] = ()) -> list[str]:
    """What there is still of a run that has ended: processes that it started, its folders. Waits a moment for them.

    others: children, by number, that were there before it.
    """
    deadline_s = time.monotonic() + LAST_S_MAX
    while left := _processes(others) + _folders(scratch):
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    return left


def _children() -> set[str]:
    """Numbers of our children, whichever thread started them."""
    pids: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that ended while we looked
            pids |= set((task / "children").read_text().split())
    return pids


def _processes(others: Collection[str]) -> list[str]:
    """What our other children are called, but for those that have ended."""
    found = []
    for pid in sorted(_children().difference(others)):
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                said = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {pid}: {said.strip()[:100]}")
    return found


def _folders(scratch: Path) -> list[str]:
    found = [scratch, *Path("/dev/shm").glob(f"holdfast-gameday-{os.getpid()}*")]
    return [str(path) for path in found if path.exists()]


def _told(probe: Probe) -> str:
    return f"{probe.name}: {probe.passed} of {probe.tried}" + (f" ({probe.seen})" if probe.seen else "")
