"""Commands about the vault that gateways share: `holdfast ledger begin | show | write-off`."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from gateway.cli_common import DATA, AsJson, ConfigFile, DataDir, explained, fail
from gateway.config_file import load
from guards.budget import Unit
from guards.money import shown

if TYPE_CHECKING:
    from gateway.books.vault.contract import Heard, Standing, Vault

T = TypeVar("T")

COLUMNS = ("account", "window", "limit", "spent", "leased", "lost")
WIDTH = 200  # characters, where the output is no terminal

ledger_app = typer.Typer(help="Budgets that many gateways share.", no_args_is_help=True)


@ledger_app.command("begin")
def begin(
    again: Annotated[
        bool, typer.Option("--again", help="After a loss: take what living gateways say for true.")
    ] = False,
    data: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Let an empty ledger be used. Gateways never do this by themselves: an empty one may have lost what it had."""
    try:
        name = _on(data, config, lambda vault: vault.begin(again=again), make=True)
    except ValueError as error:
        fail(str(error))
    typer.echo(f"the ledger {name} begins", err=True)


@ledger_app.command("show")
def show(
    tag: Annotated[str | None, typer.Option(help="Only accounts of this org or key, such as org:acme.")] = None,
    data: DataDir = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent, what is leased, and which gateways lease, by org or key."""

    async def read(vault: "Vault") -> "list[tuple[str, list[Standing], list[Heard]]]":
        tags = [one for one in await vault.tags() if tag in (None, one)]
        return [(one, await vault.standings(one), await vault.heard(one)) for one in tags]

    found = _on(data, config, read)
    if as_json:
        typer.echo(json.dumps([_fields(*one) for one in found]))
    elif not found:
        typer.echo("nothing was leased yet", err=True)
    for one in [] if as_json else found:
        _draw(*one, sys.stdout)


@ledger_app.command("write-off")
def write_off(
    gateway: Annotated[str, typer.Argument(help="As `ledger show` names it.")],
    force: Annotated[bool, typer.Option("--force", help="Also one that may be running.")] = False,
    data: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Charge all that a gateway has leased, for good; it may spend nothing any more.

    For one that will never come back. Until then its rights stay its own, because it may have spent them.
    """

    from gateway.books.ledger.gone import PRESENT, UNSAID_S
    from gateway.books.vault.contract import LEASE_S

    async def take(vault: "Vault") -> tuple[bool, int]:
        under = []
        for tag in await vault.tags():
            one = next((one for one in await vault.heard(tag) if one.name == gateway), None)
            if one is None:
                continue
            if one.ago_s <= (UNSAID_S if tag == PRESENT else LEASE_S) and not (force or one.fenced):
                fail(f"{gateway} was heard of {one.ago_s:.1f} s ago: stop it first, or write it off by --force")
            under.append(tag)
        return bool(under), sum([await vault.write_off(tag, gateway) or 0 for tag in under])

    known, number = _on(data, config, take)
    if not known:
        fail(f"no such gateway: {gateway}")
    typer.echo(f"{gateway}: written off in {number} accounts; it needs another data directory to come back", err=True)


def _on(
    data: Path | None, file: Path | None, ask: "Callable[[Vault], Coroutine[Any, Any, T]]", *, make: bool = False
) -> T:
    """Open the vault, ask it, and close it. make: also one that is not there yet."""
    from gateway.books.vault.contract import VaultDown
    from gateway.books.vault.engines import open_vault
    from gateway.config import Config

    async def asked() -> T:
        vault = open_vault(config)
        try:
            return await ask(vault)
        finally:
            await vault.close()

    with explained():
        config = load(file) if file else Config(data=DATA)
        if data:
            config = config.model_copy(update={"data": data})
        if not make and config.ledger.url is None and not (config.data / "vault.sqlite3").exists():
            fail(f"no gateways share a ledger in {config.data}")
        try:
            return asyncio.run(asked())
        except VaultDown as error:
            fail(str(error))


def _fields(tag: str, standings: "list[Standing]", heard: "list[Heard]") -> dict[str, Any]:
    accounts = [{**one.place._asdict(), **one._asdict()} for one in standings]
    for account in accounts:
        del account["place"]
    return {"tag": tag, "accounts": accounts, "gateways": [one._asdict() for one in heard]}


def _draw(tag: str, standings: "list[Standing]", heard: "list[Heard]", out: TextIO) -> None:
    """Draw a table. Names are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS, box=None, title=Text(tag), title_justify="left")
    for one in standings:
        amounts = (one.limit, one.spent, one.leased, one.lost)
        told = ("unlimited" if amount is None else _told(one.place.unit, amount) for amount in amounts)
        table.add_row(*map(Text, (one.place.scope, one.place.window, *told)))
    console = Console(file=out, width=None if out.isatty() else WIDTH)
    console.print(table)
    for gateway in heard:
        state = "written off" if gateway.fenced else f"heard of {gateway.ago_s:.1f} s ago"
        console.print(Text(f" {gateway.name}: {state}"))


def _told(unit: str, amount: int) -> str:
    return shown(amount) if unit == Unit.MONEY else f"{amount:,} {unit}"
