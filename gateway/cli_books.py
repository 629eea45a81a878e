"""Commands about money: `holdfast budgets`, `holdfast spend`, `holdfast journal`."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli_common import AsJson, ConfigFile, DataDir, books, explained, fail, keys_of, limit_of
from gateway.config import window_of
from gateway.spend import BY
from guards.scope import LEVELS_EACH, each_of, parsed, scopes

if TYPE_CHECKING:
    from gateway.books.ledger.contract import Place

budgets_app = typer.Typer(help="List, set and remove limits of orgs, teams, users and keys.", no_args_is_help=True)
journal_app = typer.Typer(help="Tell the journal again.", no_args_is_help=True)

SINCE = re.compile(r"([0-9]{1,6})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LOOKS, LOOK_S = 20, 0.25  # at books that a running gateway goes on writing

Scope = Annotated[str, typer.Argument(help="org:NAME, team:ORG/NAME, user:ORG/NAME, user:NAME or key:ID.")]
EachOption = Annotated[str | None, typer.Option("--each", help="session, agent or turn: of each one within the scope.")]


@budgets_app.command("list")
def budgets_list(data: DataDir = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List all limits and how they stand."""
    from gateway import budget_table

    with keys_of(data, config) as keys:
        lines = budget_table.lines(keys.limits(), books(data, config).data)
    if as_json:
        typer.echo(json.dumps([line.as_dict() for line in lines]))
    else:
        budget_table.show(lines, sys.stdout)


@budgets_app.command("set")
def budgets_set(
    scope: Scope,
    limits: Annotated[list[str], typer.Argument(help='Such as "50 USD/month" or "10k output tokens/hour".')],
    each: EachOption = None,
    data: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Put limits on a scope; each takes the place of the one of the same unit and window."""
    at, found = _place(scope, each), [limit_of("LIMITS", text) for text in limits]
    with keys_of(data, config) as keys:
        for limit in found:
            keys.set_limit(at, limit)
        people = [row.tenant for row in keys.list() if row.revoked_at is None]
    typer.echo(f"{at}: set; running requests notice at their next top-up", err=True)
    of = parsed(scope)
    if not any(of in scopes(one.key_id, one.user, one.org, one.team) for one in people):
        typer.echo(f"no key is under {of} yet: is it spelt as in `holdfast keys list`?", err=True)


@budgets_app.command("remove")
def budgets_remove(
    scope: Scope,
    kind: Annotated[str, typer.Argument(help='Unit and window, such as "USD/month" or "tokens/day".')],
    each: EachOption = None,
    data: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Take a limit off a scope."""
    at = _place(scope, each)
    try:
        unit, window = window_of(kind)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="KIND") from None
    with keys_of(data, config, make=False) as keys:
        done = keys.remove_limit(at, unit, window)
    if not done:
        fail(f"{at} has no stored limit in {unit} per {window}; what the configuration declares is removed there")
    typer.echo(f"{at}: removed", err=True)


def spend(
    by: Annotated[str, typer.Option(help=f"One of {', '.join(BY)}.")] = "user",
    since: Annotated[str, typer.Option(help="How far back, such as 30m, 24h or 7d.")] = "24h",
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent, by whom."""
    from gateway.books.replay import facts
    from gateway.spend import added_up, show

    if by not in BY:
        raise typer.BadParameter(f"write one of {', '.join(BY)}", param_hint="--by")
    match = SINCE.fullmatch(since)
    if match is None:
        raise typer.BadParameter("write a number and s, m, h or d, such as 24h", param_hint="--since")
    since_s = time.time() - int(match[1]) * SECONDS[match[2]]
    with _told():
        rows, recovered = added_up(facts(books(data, config).data / "journal.jsonl", since_s), by)
    if recovered:
        typer.echo("not in it: what a gateway's death left open was charged too; see holdfast journal replay", err=True)
    if as_json:
        return typer.echo(json.dumps([row.as_dict() for row in rows]))
    if not rows:
        return typer.echo(f"nothing was spent within {since}", err=True)
    return show(rows, by, sys.stdout)


@journal_app.command("replay")
def journal_replay(
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the ledger; status 1 where they differ.")
    ] = False,
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Add up what the journal says was charged, account by account."""
    from gateway.books.replay import differences, replay

    with _told():
        directory = books(data, config).data
        for look in range(LOOKS):
            began_s = time.perf_counter()
            told = replay(directory / "journal.jsonl")
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


@contextmanager
def _told() -> Iterator[None]:
    """As `explained`, and a damaged journal is told in a line, too."""
    from gateway.books.replay import Damaged

    with explained():
        try:
            yield
        except Damaged as error:
            fail(str(error))


def _place(scope: str, each: str | None) -> str:
    """Where a limit is kept. Raises BadParameter."""
    try:
        scope = parsed(scope)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="SCOPE") from None
    if each is None:
        return scope
    if each not in LEVELS_EACH:
        raise typer.BadParameter(f"write one of {', '.join(LEVELS_EACH)}", param_hint="--each")
    return each_of(each, scope)


def _spent(directory: Path) -> "dict[Place, int]":
    from gateway.books.ledger.contract import Place
    from gateway.books.ledger.tables import read_balances

    return {Place(*row[:3]): row.spent for row in read_balances(directory) if row.spent}
