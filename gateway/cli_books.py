"""Commands about what was spent: `holdfast spend`, `holdfast journal`."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli_common import AsJson, ConfigFile, DataDir, OpenKeys, books, corrected, explained, fail, keys_of
from gateway.config_file import load
from gateway.spend import BY

if TYPE_CHECKING:
    from gateway.books.ledger.contract import Place

journal_app = typer.Typer(help="Tell the journal again.", no_args_is_help=True)

SINCE = re.compile(r"([0-9]{1,6})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LOOKS, LOOK_S = 20, 0.25  # at books that a running gateway goes on writing


def spend(
    by: Annotated[str, typer.Option(help=f"One of {', '.join(BY)}.")] = "user",
    since: Annotated[str, typer.Option(help="How far back, such as 30m, 24h or 7d.")] = "24h",
    plot: Annotated[bool, typer.Option("--plot", help="Draw it over time.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Draw it over time, into this SVG file.")] = None,
    journal: Annotated[list[Path] | None, typer.Option(help="A journal to read instead; repeatable.")] = None,
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent, by whom."""
    from gateway import spend_plot
    from gateway.books.directories import journals
    from gateway.books.replay import facts
    from gateway.books.repricing import spans
    from gateway.spend import Sum, show

    if by not in BY:
        raise typer.BadParameter(f"write one of {', '.join(BY)}", param_hint="--by")
    span_s = seconds(since)
    step_s = spend_plot.step_for(span_s)
    over_time = plot or svg is not None
    found = Sum(by, step_s if over_time else None)
    with _told():
        for path in journal or journals(books(data, config).data):
            found.add(facts(path, time.time() - span_s), spans(path))
        if svg is not None:
            svg.write_text(spend_plot.svg(spend_plot.plot(found.over_time, step_s), by), "utf-8")
    if found.recovered:
        typer.echo("not in it: what a gateway's death left open was charged too; see holdfast journal replay", err=True)
    if as_json:
        at_all = [({"at": at} if over_time else {}) | one.as_dict() for at, one in found.rows]
        return typer.echo(json.dumps(at_all))
    if not found.rows:
        return typer.echo(f"nothing was spent within {since}", err=True)
    if plot:
        return spend_plot.show(spend_plot.plot(found.over_time, step_s), sys.stdout)
    return None if svg else show([one for _, one in found.rows], by, sys.stdout)


@journal_app.command("replay")
def journal_replay(
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the ledger; status 1 where they differ.")
    ] = False,
    prices: Annotated[
        Path | None, typer.Option(help="Compare with what requests would cost by this holdfast.yaml's prices.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="With --prices: how far back, such as 24h; else all.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="With --prices: correct the ledger by the difference.")
    ] = False,
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Add up what the journal says was charged, account by account; or what it would be at other prices."""
    if prices is None and (apply or since):
        raise typer.BadParameter("is for --prices", param_hint="--apply" if apply else "--since")
    if prices is not None and check:
        raise typer.BadParameter("is not for --prices", param_hint="--check")
    with _told():
        directory = books(data, config or prices).data
        if prices is None:
            return _replay(directory, check, as_json)
        since_s = time.time() - seconds(since) if since else 0.0
        keys = partial(keys_of, directory, config or prices) if apply else None
        return _reprice(directory, prices, since_s, as_json, keys)


def _replay(directory: Path, check: bool, as_json: bool) -> None:
    from gateway.books.directories import journals
    from gateway.books.replay import differences, replay_all

    for look in range(LOOKS):
        began_s = time.perf_counter()
        told = replay_all(journals(directory))
        took_s = time.perf_counter() - began_s
        wrong = differences(told.charged, _spent(directory)) if check else []
        if not wrong or look == LOOKS - 1:
            break
        time.sleep(LOOK_S)  # the journal is told a moment after the ledger
    rate = round(told.facts / took_s) if took_s else 0
    result = {"facts": told.facts, "facts_per_s": rate, "accounts": len(told.charged), "facts_lost": told.lost}
    if as_json:
        charged = [{**at._asdict(), "charged": amount} for at, amount in sorted(told.charged.items())]
        differ = [{**at._asdict(), "journal": journal, "ledger": ledger} for at, journal, ledger in wrong]
        typer.echo(json.dumps(result | ({"differences": differ} if check else {"charged": charged})))
    else:
        typer.echo(f"{told.facts:,} facts at {rate:,} a second, {len(told.charged):,} accounts", err=True)
        if told.lost:
            typer.echo(f"the journal lost {told.lost:,} facts while it could not be written", err=True)
        for at, journal, ledger in wrong:
            typer.echo(f"{' '.join(at)}: the journal says {journal}, the ledger {ledger}")
        if check and not wrong:
            typer.echo("the ledger is what the journal says", err=True)
    if wrong:
        raise typer.Exit(1)


def _reprice(directory: Path, prices: Path, since_s: float, as_json: bool, keys: OpenKeys | None) -> None:
    """Say what other prices come to. keys: opens the key store, where the ledger is to be corrected."""
    from gateway.books.directories import journals
    from gateway.books.replay import facts
    from gateway.books.repricing import SLACK_S, due, name_of, spans
    from gateway.spend import show_repricing

    found_in = journals(directory)
    if len(found_in) > 1:
        several = ", ".join(str(path.parent) for path in found_in)
        fail(f"each worker has books of its own: name one of them, when they do not run: --data {several}")
    if not found_in:
        fail(f"there is no journal in {directory}")
    (journal,) = found_in
    known = spans(journal)
    now = {one.model: one.price for one in load(prices).prices}
    found = due(facts(journal, max(0.0, since_s - SLACK_S)), now, known, since_s)
    done = None
    if keys is not None and (corrections := found.corrections()):
        done = corrected(directory, name_of(journal, known), corrections, keys, any_order=True)
    if as_json:
        models = {
            model: {"requests": one.requests, "was": one.was, "now": one.now} for model, one in found.models.items()
        }
        accounts = [{**at._asdict(), "difference": amount} for at, amount in sorted(found.accounts.items())]
        return typer.echo(json.dumps({"models": models, "accounts": accounts, "corrected": done is True}))
    show_repricing(found, sys.stdout)
    said = "nothing differs" if not found.corrections() else "nothing was changed: --apply corrects the ledger by this"
    if done is not None:
        said = "the ledger was corrected" if done else "somebody else has just done so: look again"
    return typer.echo(said, err=True)


@contextmanager
def _told() -> Iterator[None]:
    """As `explained`, and a damaged journal is told in a line, too."""
    from gateway.books.replay import Damaged

    with explained():
        try:
            yield
        except Damaged as error:
            fail(str(error))


def _spent(directory: Path) -> "dict[Place, int]":
    from gateway.books.ledger.contract import Place
    from gateway.books.ledger.tables import read_balances

    return {Place(*row[:3]): row.spent for row in read_balances(directory) if row.spent}


def seconds(since: str) -> int:
    """Read a span of time. Raises BadParameter."""
    match = SINCE.fullmatch(since)
    if match is None:
        raise typer.BadParameter("write a number and s, m, h or d, such as 24h", param_hint="--since")
    return int(match[1]) * SECONDS[match[2]]
