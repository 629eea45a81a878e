"""`holdfast load SCENARIO`: locust, headless, with a live view; then the report. It needs the extra «loadtest»."""

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.live import Live as Screen

from gateway.local.leashed import LaunchFailed, Leashed
from gateway.local.ports import free_ports
from loadtests.traffic import options, page, report
from loadtests.traffic.live import Live
from loadtests.traffic.record import Stage, Tail
from loadtests.traffic.scenarios import REPLAY
from loadtests.traffic.server import NoModel, Server
from loadtests.traffic.traces import TraceError

if find_spec("locust") is None:  # not imported here: it changes the process that does
    raise ImportError("No module named 'locust'")

LOCUSTFILE = Path(__file__).parent.parent / "locustfile.py"
CLASSES = {
    "chat": ("ChatSessions",),
    "agents": ("Agents",),
    "batch": ("Batches",),
    "runaway": ("Runaways",),
    "leavers": ("Leavers",),
    "long": ("LongContexts",),
    "tenants": ("Tenants",),
    REPLAY: ("Replay",),
    "all": ("ChatSessions", "Agents", "Batches", "Runaways", "Leavers", "LongContexts"),
}
BESIDE = (".json", ".records")  # of a report
OWN = ("records", "report")  # options that this command sets itself
BEYOND_S = 60.0  # for locust to start and to end, beside what the run takes
LOOK_S, POLITE_S = 0.25, 10.0

load_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a run as well, which it takes by **given."""
    signature = inspect.signature(command)
    kept = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, words in options.OPTIONS.items():
        if name not in OWN:
            kind: Any = bool if words.get("action") else words.get("type", str)
            annotation = Annotated[kind, typer.Option(f"--{name}", help=words["help"].replace("%%", "%"))]
            kept.append(
                inspect.Parameter(
                    name.replace("-", "_"),
                    inspect.Parameter.KEYWORD_ONLY,
                    default=words.get("default", False),
                    annotation=annotation,
                )
            )
    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in kept}
    return command


@load_app.command()
@_with_options
def load(
    scenario: Annotated[str, typer.Argument(help=f"One of {', '.join(CLASSES)}; or some, with commas.")],
    host: Annotated[
        str, typer.Option(help="Root URL of the gateway, or of any OpenAI-compatible server.")
    ] = "http://127.0.0.1:8080",
    out: Annotated[Path | None, typer.Option(help="The report; JSON comes beside it.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="That make the load.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's JSON.")] = False,
    **given: Any,
) -> None:
    """Load a server with realistic LLM traffic, and report what came of it.

    Clients come in an open loop: at --rate, whatever became of those before them, or as a trace has them. Ends with
    status 1 where a request failed or a stream was not whole. Keys: OPENAI_API_KEY, or a file of tenants' (--keys).
    """
    names = _classes(scenario)
    given["rate"] = given["rate"] or ("" if names == CLASSES[REPLAY] else "1")
    try:
        settings = options.read(argparse.Namespace(**given))
        options.check({one.lower() for one in names}, settings)
        root = options.root(host)
    except (options.BadOption, TraceError) as error:
        _usage(str(error))
    if out is not None:
        _fit(out)
    try:
        given["model"] = given["model"] or Server(root, next(iter(settings.keys.values()), "")).first_model()
    except NoModel as none:
        _usage(str(none))
    target = out or Path(f"load-{scenario.replace(',', '-')}-{datetime.now():%Y%m%d-%H%M%S}.html")
    folder = target.with_suffix(".records")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _usage(f"--out {target}: {folder} cannot be made: {error.strerror}")
    plan = settings.plan(REPLAY if "Replay" in names else scenario)
    live = Live(f"{scenario} at {root}", plan.takes_s, settings.sla)
    command = _command(names, root, folder, processes, given)
    over = _watched(command, folder, live, plan.takes_s + given["patience_s"] + BEYOND_S)
    _tell(target, folder, over, as_json)


def _fit(out: Path) -> None:
    """Ends with status 2 where no report can be there."""
    if not out.name or out.is_dir():
        _usage(f"--out {out}: it is a folder; name a file, such as report.html")
    if out.suffix in BESIDE:
        _usage(f"--out {out}: beside it come {' and '.join(BESIDE)}; name it such as {out.with_suffix('.html')}")


def _classes(scenario: str) -> tuple[str, ...]:
    """Locust's user classes of what was asked for."""
    unknown = [name for name in scenario.split(",") if name not in CLASSES]
    if unknown:
        _usage(f"no such scenario: {', '.join(unknown)}. There are {', '.join(CLASSES)}")
    return tuple(dict.fromkeys(one for name in scenario.split(",") for one in CLASSES[name]))


def _command(names: tuple[str, ...], root: str, folder: Path, processes: int, given: dict[str, Any]) -> list[str]:
    users = str(max(processes, len(names)))
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(LOCUSTFILE),
        "--headless",
        "--only-summary",
        "--loglevel",
        "WARNING",
    ]
    command += ["--host", root, "--users", users, "--spawn-rate", "100", "--records", str(folder.absolute())]
    if processes > 1:
        port = str(free_ports(1)[0])
        command += ["--processes", str(processes), "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--master-host", "127.0.0.1", "--master-port", port]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(option)
        elif value is not False and value != "":
            command.append(f"{option}={Path(value).absolute() if name in ('trace', 'keys') else value}")
    return [*command, *names]


def _watched(command: list[str], folder: Path, live: Live, limit_s: float) -> str:
    """Run it and show it. Answers why it ended early; nothing where it did not."""
    report.cleared(folder)
    path = os.pathsep.join(filter(None, [str(LOCUSTFILE.parent.parent), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path}
    locust = Leashed("locust", command, log=folder / "locust.log", environment=environment, polite_s_max=POLITE_S)
    console, tail, until_s = Console(stderr=True), Tail(folder), time.monotonic() + limit_s
    try:
        with locust, Screen(live, console=console, refresh_per_second=4, transient=True) as screen:
            while locust.alive:
                live.take(tail.read())
                if console.is_terminal:
                    screen.update(live)
                else:
                    live.plain(console)
                if time.monotonic() > until_s:
                    return f"it did not end within {limit_s:.0f} s, and was ended"
                time.sleep(LOOK_S)
    except LaunchFailed as failed:
        return str(failed)
    except KeyboardInterrupt:
        return "interrupted"
    return ""


def _tell(target: Path, folder: Path, over: str, as_json: bool) -> None:
    """Write the report, say the most of it, and end with what it comes to."""
    if over:
        typer.echo(over, err=True)
    try:
        report.write(folder, target)
    except report.NoRun:
        log = folder / "locust.log"
        said = log.read_text(errors="replace").strip()[-2000:] if log.exists() else ""
        typer.echo(f"nothing was asked. {said}".strip(), err=True)
        raise typer.Exit(130 if over == "interrupted" else 1) from None
    except OSError as error:
        typer.echo(f"no report: {error}. Its records are in {folder}", err=True)
        raise typer.Exit(1) from None
    found = json.loads(target.with_suffix(".json").read_text())
    typer.echo(json.dumps(found) if as_json else said_of(found, target))
    ended = found["rates"]["requests"] - found["stages"].get(Stage.UNFINISHED, 0)
    raise typer.Exit(130 if over == "interrupted" else int(bool(found["failed"] or over or not ended)))


def said_of(found: dict[str, Any], target: Path) -> str:
    """The most of a report, in lines."""
    rates = found["rates"]
    share = "" if rates["good_share"] is None else f" ({rates['good_share']:.1%})"
    offered = rates["clients_offered_per_s"]
    lines = [
        f"{rates['requests']} requests, {rates['requests_per_s']:.2f}/s; good {rates['goodput_per_s']:.2f}/s{share}"
    ]
    if offered is not None:
        lines.append(f"clients offered {offered:.2f}/s, let in {rates['clients_begun_per_s']:.2f}/s")
    for row in ("TTFT", "ITL", "TPOT", "E2E"):
        told = found["latency"][row]
        lines.append(
            f"{row:5}"
            + "".join(f"  {name} {page.ms(told[name])} ms" for name in page.COLUMNS if told[name] is not None)
        )
    for name, one in found["paired"].items():
        lines.append(
            f"added to {name}: {page.ms(one['median'])} ms ({page.ms(one['low'])} … {page.ms(one['high'])}), "
            f"{one['values']} pairs"
        )
    lines.append("   ".join(f"{stage} {count}" for stage, count in found["stages"].items()))
    lines += [
        f"  {one['count']} × {one['stage']} {one['status'] or ''} {one['code']} {one['said']}"
        for one in found["errors"]
        if one["error"]
    ]
    lines += [f"The generator limited this run: {one}" for one in found["generator"]["limited"]]
    return "\n".join([*lines, f"report: {target}"])


def _usage(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
