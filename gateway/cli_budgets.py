"""Commands about limits: `holdfast budgets`, and `holdfast holds`, what runs under them."""

import json
import os
import secrets
import sys
import time
from functools import partial
from typing import Annotated

import typer

from gateway.cli_common import (
    AsJson,
    ConfigFile,
    DataDir,
    books,
    corrected,
    explained,
    fail,
    from_admin,
    keys_of,
    limit_of,
)
from gateway.config import window_of
from guards.budget import Unit, Window
from guards.scope import LEVELS_EACH, each_of, parsed, scopes

budgets_app = typer.Typer(
    help="Limits of orgs, teams, users and keys: list, set, remove, reset, top up.", no_args_is_help=True
)

Scope = Annotated[str, typer.Argument(help="org:NAME, team:ORG/NAME, user:ORG/NAME, user:NAME or key:ID.")]
EachOption = Annotated[str | None, typer.Option("--each", help="session, agent or turn: of each one within the scope.")]
Kind = Annotated[str, typer.Argument(help='Unit and window, such as "USD/month" or "tokens/day".')]


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
    kind: Kind,
    each: EachOption = None,
    data: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Take a limit off a scope."""
    at, (unit, window) = _place(scope, each), _kind(kind)
    with keys_of(data, config, make=False) as keys:
        done = keys.remove_limit(at, unit, window)
    if not done:
        fail(f"{at} has no stored limit in {unit} per {window}; what the configuration declares is removed there")
    typer.echo(f"{at}: removed", err=True)


@budgets_app.command("reset")
def budgets_reset(
    scope: Scope,
    kind: Kind,
    name: Annotated[
        str | None, typer.Option("--id", help="Whoever resets again under the same id changes nothing.")
    ] = None,
    data: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Give back all that was spent in the present window; what running requests hold stays held."""
    from gateway.books.corrections import reset
    from gateway.books.ledger.contract import Place

    at, (unit, window) = _place(scope, None), _kind(kind)
    name = _named("reset", name)
    place = Place(at, unit.value, window.id_at(time.time()))
    with explained():
        done = corrected(books(data, config).data, name, reset(place), partial(keys_of, data, config))
    typer.echo(
        f"{at}: {unit} of {place.window} " + ("reset" if done else f"were reset under the id {name} before"), err=True
    )


@budgets_app.command("top-up")
def budgets_top_up(
    scope: Scope,
    amount: Annotated[str, typer.Argument(help='Such as "5 USD/month": so much more in the present month.')],
    name: Annotated[
        str | None, typer.Option("--id", help="Whoever tops up again under the same id changes nothing.")
    ] = None,
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Add to a limit, once, for its present window alone; running requests notice at their next top-up."""
    from gateway.budget_table import added

    at, more = _place(scope, None), limit_of("AMOUNT", amount)
    name = _named("top-up", name)
    with keys_of(data, config) as keys:
        try:
            one, new = keys.top_up(name, at, more)
        except (LookupError, ValueError) as error:
            fail(str(error.args[0]))
    if as_json:
        typer.echo(json.dumps(added(one) | {"new": new}))
    known = "added" if new else "was added before"
    typer.echo(f"{at}: {amount} {known}, for {one.window_id} (id {one.name})", err=True)


def holds(
    admin: Annotated[str | None, typer.Option(help="Root URL of the admin port.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most, those that began first.", min=1, max=1000)] = 100,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs on a gateway, and what it holds; HOLDFAST_ADMIN_KEY is its admin key."""
    from gateway.budget_table import show_holds

    with explained():
        told = from_admin(admin, config, f"/admin/holds?limit={limit}", os.environ)
    if as_json:
        return typer.echo(json.dumps(told))
    return show_holds(told, sys.stdout)


def _kind(text: str) -> tuple[Unit, Window]:
    try:
        return window_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="KIND") from None


def _named(what: str, name: str | None) -> str:
    """The name of a change, a new one where nobody gave it one: an empty one may be a variable that was not set."""
    from gateway.books.corrections import nameable

    try:
        return f"{what}-{secrets.token_hex(8)}" if name is None else nameable(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--id") from None


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
