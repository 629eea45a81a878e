"""The command line: serve, keys, budgets, holds, replicas, drain, move, sla, spend, journal, ledger, check, doctor,
demo, version. Other packages add theirs, such as pages: gateway/cli_added.py.

Standard output holds only what was asked for, so that scripts can use it; everything else goes to
standard error. Heavy modules are imported by the command that needs them.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway import cli_books, cli_budgets, cli_doctor, cli_drain, cli_ledger, cli_move, cli_replicas, cli_sla
from gateway.cli_added import WithAdded
from gateway.cli_common import (
    DATA,
    UPSTREAM_KEY,
    AsJson,
    ConfigFile,
    DataDir,
    books,
    explained,
    fail,
    keys_of,
    limit_of,
)
from gateway.config import Config
from gateway.config_file import ConfigErrors, from_upstreams, load, overridden

if TYPE_CHECKING:
    from gateway.books.tenants import Tenant

app = typer.Typer(
    cls=WithAdded,
    name="holdfast",
    help="An OpenAI-compatible gateway in front of vLLM servers: bounded, alive, intact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, and those hold keys
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(cli_budgets.budgets_app, name="budgets")
app.add_typer(cli_books.journal_app, name="journal")
app.add_typer(cli_ledger.ledger_app, name="ledger")
app.command("spend")(cli_books.spend)
app.command("holds")(cli_budgets.holds)
app.command("replicas")(cli_replicas.replicas)
app.command("drain")(cli_drain.drain)
app.command("doctor")(cli_doctor.doctor)
app.command("move")(cli_move.move)
app.command("sla")(cli_sla.sla)

PortOption = typer.Option(min=0, max=65535)


def main() -> None:
    """Run the command line of this process."""
    app()


@app.command()
def serve(
    config: ConfigFile = None,
    upstream: Annotated[list[str] | None, typer.Option(help="Root URL of a vLLM server; repeatable.")] = None,
    data: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, PortOption] = None,
    admin_port: Annotated[int | None, PortOption] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes that share the port.")] = None,
) -> None:
    """Run the gateway, from a configuration file or in front of --upstream servers."""
    if (config is None) == (not upstream):
        raise typer.BadParameter("give either --config FILE or --upstream URL")
    given = {"host": host, "port": port, "admin_port": admin_port}
    listen = {name: value for name, value in given.items() if value is not None}
    with explained():
        _run(_chosen(config, upstream or [], data, listen, workers))


def _chosen(
    file: Path | None, upstreams: list[str], data: Path | None, listen: dict[str, Any], workers: int | None
) -> Config:
    if file is None:
        key = os.environ.get(UPSTREAM_KEY)
        return from_upstreams(upstreams, data=data or DATA, key=key, listen=listen, workers=workers)
    config = load(file)
    return overridden(config, data=data, listen=listen, workers=workers) if data or listen or workers else config


def _run(config: Config) -> None:
    from gateway.app import run
    from gateway.books.directories import directories
    from gateway.books.ledger.tables import LedgerInUse
    from gateway.stream.text import TokenizerInvalid
    from gateway.watch import logs
    from gateway.workers import pin
    from gateway.workers import serve as serve_by_workers

    logs.set_up()
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if config.workers > 1 or directories(config.data):
            raise typer.Exit(serve_by_workers(config))
        if config.workers_pinned:
            pin(0)
        run(config)
    except (LedgerInUse, TokenizerInvalid) as error:
        fail(str(error))


@keys_app.command("create")
def keys_create(
    user: Annotated[str, typer.Option(help="Whose key it is.")],
    org: Annotated[str | None, typer.Option(help="The user's organisation.")] = None,
    team: Annotated[str | None, typer.Option(help="The user's team in it.")] = None,
    tokens: Annotated[list[str] | None, typer.Option(help="Budget, such as 100000/day; repeatable.")] = None,
    spend: Annotated[list[str] | None, typer.Option(help="Dollars, such as 5.00/month; repeatable.")] = None,
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, once."""
    limits = [limit_of("--tokens", text) for text in tokens or ()]
    limits += [limit_of("--spend", _in_dollars(text)) for text in spend or ()]
    with keys_of(data, config) as keys:
        try:
            secret, tenant = keys.create(user, org, limits, team)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    typer.echo(json.dumps({"key": secret, **_fields(tenant)}) if as_json else secret)
    typer.echo(f"{tenant.key_id} for {tenant.user}: shown once, keep it", err=True)


@keys_app.command("list")
def keys_list(data: DataDir = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List all keys with their budgets; never the keys themselves."""
    from gateway import key_table

    with explained():
        found = books(data, config)
        if not found.keys and not (found.data / "keys.db").exists():  # looking makes nothing
            typer.echo(f"no keys in {found.data}", err=True)
            return typer.echo("[]") if as_json else None
    with keys_of(data, config) as keys:
        lines = key_table.lines(keys.list(), found.data)
    if as_json:
        typer.echo(json.dumps([line.as_dict() for line in lines]))
    else:
        key_table.show(lines, sys.stdout)
    return None


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="As `keys list` shows it.")],
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key; a running gateway refuses it at once, and ends its streams within a second."""
    with keys_of(data, config, make=False) as keys:
        done = keys.revoke(key_id)
        in_config = any(row.tenant.key_id == key_id and row.tenant.source == "config" for row in keys.list())
    if as_json:
        typer.echo(json.dumps({"key_id": key_id, "revoked": done}))
    if not done:
        fail(f"{key_id} is declared in the configuration: remove it there" if in_config else f"no such key: {key_id}")
    typer.echo(f"{key_id} revoked", err=True)


@app.command()
def check(file: Path, as_json: AsJson = False) -> None:
    """Check a configuration file and print everything that is wrong with it."""
    errors: list[dict[str, Any]] = []
    try:
        config = load(file)
    except ConfigErrors as wrong:
        errors = [{name: getattr(error, name) for name in error.__slots__} for error in wrong.errors]
        if not as_json:
            fail(str(wrong))
    if as_json:
        typer.echo(json.dumps({"ok": not errors, "errors": errors}))
        raise typer.Exit(bool(errors))
    models = len(config.models) or "discovered"
    typer.echo(f"{file}: ok (models: {models}, replicas: {len(config.replicas)}, keys: {len(config.keys)})")


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Show a failover on this machine, with servers of its own."""
    from gateway.local.demo import main as show

    show(as_json)


@app.command()
def version() -> None:
    """Print the version."""
    from gateway.release import release

    typer.echo(release() or fail("not installed: run from a source tree"))


def _in_dollars(text: str) -> str:
    """Name the unit that --spend leaves out."""
    amount, slash, window = text.partition("/")
    return text if "USD" in amount.upper() else f"{amount} USD{slash}{window}"


def _fields(tenant: "Tenant") -> dict[str, Any]:
    limits = [{"unit": one.unit.value, "amount": one.amount, "window": one.window.value} for one in tenant.own]
    return {"key_id": tenant.key_id, "user": tenant.user, "org": tenant.org, "team": tenant.team, "limits": limits}
