"""`holdfast bench compare A.json B.json`: of two load tests, or of two runs of `make bench`."""

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtests.traffic import compare, ratios

COLOURS = {"better": "green", "worse": "red", "same": "", "unknown": "dim"}

bench_app = typer.Typer(help="Compare what load tests found.", no_args_is_help=True, add_completion=False)


@bench_app.callback()
def bench() -> None:
    """Compare what load tests found."""


@bench_app.command("compare")
def compare_reports(
    before: Annotated[Path, typer.Argument(help="A report's JSON, or that of make bench.")],
    after: Annotated[Path, typer.Argument(help="Another one's, of the same load.")],
    unlike: Annotated[bool, typer.Option("--unlike", help="Even where different things were asked for.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is better in the second report, and what is worse, beyond the spread of both.

    Of two runs of make bench: what Holdfast costs as a share of each other gateway in both, and how far that is apart.

    Ends with status 0 where nothing is worse, 1 where something is, 2 where the two cannot be compared.
    """
    try:
        sides = [ratios.load(path) for path in (before, after)]
        if sides[0] is not None and sides[1] is not None:
            _compare_sides(sides[0], sides[1], unlike=unlike, as_json=as_json)
        one, other = compare.load(before), compare.load(after)
    except (compare.NoReport, ratios.NoBench) as error:
        _cannot(str(error))
    if (differs := compare.unlike(one, other)) and not unlike:
        _differ(differs)
    lines = compare.lines(one, other)
    limited = [str(path) for path, found in ((before, one), (after, other)) if found["generator"]["limited"]]
    if as_json:
        typer.echo(json.dumps({"lines": [line.as_dict() for line in lines], "differs": differs, "limited": limited}))
    else:
        Console().print(_table(lines))
    for path in limited:
        typer.echo(f"{path}: its generator limited it; it says less than it should", err=True)
    raise typer.Exit(int(any(line.verdict == "worse" for line in lines)))


def _compare_sides(before: ratios.Sides, after: ratios.Sides, *, unlike: bool, as_json: bool) -> NoReturn:
    if (differs := ratios.unlike(before, after)) and not unlike:
        _differ(differs)
    found = list(ratios.ratios(before, after))
    if as_json:
        typer.echo(json.dumps({"ratios": [one.as_dict() for one in found], "differs": differs}))
    else:
        if found:
            Console().print(_ratio_table(found))
        apart = sorted(abs(one.apart) for one in found if one.apart is not None)
        if apart:
            typer.echo(
                f"{len(apart)} ratios, {apart[len(apart) // 2]:.1%} apart at the median, {apart[-1]:.1%} at most"
            )
    if all(one.apart is None for one in found):
        _cannot("nothing was measured in both")
    raise typer.Exit(int(any(one.verdict == "worse" for one in found)))


def _ratio_table(found: list[ratios.Ratio]) -> Table:
    table = Table(box=None)
    for name in (f"{ratios.MINE}'s share of", "", "before", "after", "apart", ""):
        table.add_column(name, justify="right" if name in ("before", "after", "apart") else "left")
    for one in found:
        shares = [
            "–" if share is None else f"{share.median:.3g} ({share.low:.3g} … {share.high:.3g})"
            for share in (one.before, one.after)
        ]
        apart = "–" if one.apart is None else f"{one.apart:+.1%}"
        table.add_row(one.other, one.what, *shares, apart, Text(one.verdict, COLOURS[one.verdict]))
    return table


def _differ(differs: list[str]) -> NoReturn:
    _cannot("\n  ".join(["different things were asked for (--unlike compares all the same):", *differs]))


def _table(lines: list[compare.Line]) -> Table:
    table = Table(box=None)
    for name in ("", "before", "after", "change", "95 % within", ""):
        table.add_column(name, justify="left" if not name else "right")
    for line in lines:
        change, within = "–", "–"
        if line.change is not None:
            change = _signed(line.change.median, line.unit)
            within = f"{_signed(line.change.low, line.unit)} … {_signed(line.change.high, line.unit)}"
        unit = "ms" if line.unit == "s" else line.unit
        table.add_row(
            f"{line.name}, {unit}", _shown(line.before, line.unit), _shown(line.after, line.unit), change, within,
            Text(line.verdict, COLOURS[line.verdict]),
        )  # fmt: skip
    return table


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value * 1e3:.2f}" if unit == "s" else f"{value:.3g}"


def _signed(value: float, unit: str) -> str:
    return f"{value * 1e3:+.2f}" if unit == "s" else f"{value:+.3g}"


def _cannot(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
