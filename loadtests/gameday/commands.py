"""`holdfast gameday`: faults by script on real vLLM servers, and a score."""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer

from gateway.local.engine import EngineFailed, vllm_python
from gateway.local.screen import Screen
from loadtests.gameday import report
from loadtests.gameday.bounds import leave
from loadtests.gameday.on import CUTTING, BadRunning, Running, read
from loadtests.gameday.registry import all_scenarios
from loadtests.gameday.run import Run
from loadtests.gameday.scenario import Scenario
from loadtests.gameday.score import Outcome, Verdict
from loadtests.versions import versions, versions_beside

LOOK = {Verdict.HELD: "green", Verdict.BROKEN: "bold red", Verdict.NO_STEADY_STATE: "red", Verdict.FAILED: "red"}
ENDING = (signal.SIGTERM, signal.SIGHUP)

gameday_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@gameday_app.command()
def gameday(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="Which, by name; see --list.", metavar="SCENARIO…")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them, in the order of --list.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Say which there are, and end.")] = False,
    seed: Annotated[int, typer.Option(help="Of all chance: of moments, servers, requests.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's JSON; progress goes to stderr.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--report", help="Folder of the report and its evidence: a new one, or empty.")
    ] = None,
    on: Annotated[
        Path | None, typer.Option(help="On a fleet that runs already, as this file says (docs/gameday.md).")
    ] = None,
    really: Annotated[
        bool, typer.Option("--really", help="With --on: yes, break something that others may be using.")
    ] = False,
) -> None:
    """Make faults on a fleet, see whether the promises hold, and give a score of 0 to 100.

    Starts two real vLLM servers on the CPU and gateways of its own, and leaves nothing of them behind, also on Ctrl-C.
    Status 0: all that was asked for was tried and held; 1: something did not hold; 3: something could not be tried.
    """
    known = all_scenarios()
    if listed:
        _list(known, as_json)
        return
    running = _running(on, really)
    chosen = _chosen(known, scenarios or [], every, running)
    target = folder or Path(f"gameday-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            _usage(f"{target} is there already, and not empty")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):  # a folder that cannot be written to is found out now, not at the end
            pass
    except OSError as error:
        _usage(f"{target}: {error.strerror}")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output may be JSON
    raise typer.Exit(play(chosen, target, seed, running, as_json))


def play(
    chosen: Mapping[str, type[Scenario]],
    folder: Path,
    seed: int,
    running: Running | None = None,
    as_json: bool = False,
    make_run: Callable[..., Run] = Run,
) -> int:
    """Run these, tell, write the report, also of a part where it is broken off; the exit status."""
    screen, began_s = Screen(sys.stderr if as_json else sys.stdout), time.time()
    handlers = {number: signal.signal(number, leave) for number in ENDING}
    told = _Told(screen)
    run = make_run(folder, seed, told, on=running)
    ending = 0
    try:
        with run:
            for number, scenario in enumerate(chosen.values(), 1):
                screen.say(f"\n[{number} of {len(chosen)}] {scenario.name}: {scenario.title}", "bold")
                screen.say(f"  hypothesis: {scenario.hypothesis}")
                with told.during(f"  {scenario.name}, {scenario.limit_s:.0f} s at most"):
                    outcome = run.scenario(scenario)
                _tell(screen, outcome)
    except KeyboardInterrupt:
        ending = 128 + signal.SIGINT
    except SystemExit as left:
        ending = int(left.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = report.found(
        run.outcomes, seed=seed, began_s=began_s, asked=len(chosen), left=run.left, versions=_versions(running)
    )
    if as_json:
        print(json.dumps(said))
    try:
        report.write(folder, said)
        where = f"report: {folder / report.HTML}, {folder / report.JSON}"
    except OSError as error:
        where, ending = f"the report cannot be written: {folder}: {error.strerror}", ending or 1
    screen.say("")
    for line in report.lines(said):
        screen.say(line)
    screen.say(where)
    return ending or report.status(said)


class _Told:
    """Tells how far it is: in the line of what is going on, where there is one."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._line: Callable[[str], None] | None = None

    def __call__(self, note: str) -> None:
        if self._line is not None:
            self._line(note)
        else:
            self._screen.say(f"  {note}")

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Tell it in the line of this."""
        with self._screen.busy(what) as self._line:
            try:
                yield
            finally:
                self._line = None


def _tell(screen: Screen, outcome: Outcome) -> None:
    for probe in outcome.probes:
        seen = f" ({probe.seen})" if probe.seen else ""
        screen.say(f"  {probe.passed} of {probe.tried}  {probe.name}{seen}", "green" if probe.holds else "bold red")
    why = f": {outcome.why}" if outcome.why else ""
    screen.say(
        f"  {str(outcome.verdict).upper()}{why}, after {outcome.took_s:.0f} s", LOOK.get(outcome.verdict, "yellow")
    )


def _versions(running: Running | None) -> dict[str, str]:
    """Of this machine, of who made the faults, and of engines of its own."""
    found = versions("holdfast", "aiohttp")
    with suppress(EngineFailed):
        found |= versions_beside(vllm_python(), ("vllm", "torch")) if running is None else {}
    return found


def _list(known: Mapping[str, type[Scenario]], as_json: bool) -> None:
    told = [
        {
            "name": one.name, "title": one.title, "hypothesis": one.hypothesis, "weight": one.weight,
            "weight_why": one.why, "limit_s": one.limit_s, "running": one.name in CUTTING,
        }
        for one in known.values()
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(told))
        return
    for one in told:
        typer.echo(f"{one['name']:18} weight {one['weight']:>2}  {one['title']}")


def _chosen(
    known: Mapping[str, type[Scenario]], names: list[str], every: bool, running: Running | None
) -> dict[str, type[Scenario]]:
    """What is to be run. Ends with status 2 where that makes no sense."""
    if bool(names) == every:
        _usage(f"name scenarios, or say --all. There are {', '.join(known)}")
    if unknown := [name for name in names if name not in known]:
        _usage(f"no such scenario: {', '.join(unknown)}. There are {', '.join(known)}")
    chosen = {name: scenario for name, scenario in known.items() if every or name in names}
    if running is None:
        return chosen
    possible = running.scenarios(known)
    if barred := [name for name in names if name not in possible]:
        _usage("; ".join(f"{name}: {running.barred(known[name])}" for name in barred))
    if not (chosen := {name: one for name, one in possible.items() if name in chosen}):
        _usage("nothing can be tried on this fleet: the file names no fault")
    return chosen


def _running(on: Path | None, really: bool) -> Running | None:
    """What --on says, which takes --really as well."""
    if on is None:
        if really:
            _usage("--really says nothing without --on")
        return None
    try:
        running = read(on)
    except BadRunning as bad:
        _usage(str(bad))
    if not really:
        _usage(f"this would break parts of {running.url} while others may be using it. If that is meant, add --really")
    return running


def _usage(message: str) -> NoReturn:
    typer.echo(f"holdfast gameday: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """`python -m loadtests.gameday`."""
    with suppress(BrokenPipeError):
        gameday_app(prog_name="holdfast gameday")


if __name__ == "__main__":
    main()
