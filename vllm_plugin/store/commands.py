"""`holdfast pages list | stat | erase`: what lies in a page store of this machine.

Importing this needs no lmdb, which is for vLLM's environment: `holdfast --help` shows it everywhere.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, NoReturn, TextIO

import typer

from vllm_plugin.store.contract import PageStore, Session, StoreBusy, StoreRefused
from vllm_plugin.store.stores import open_store

STORE = "lmdb:///dev/shm/holdfast"
ERASE_S = 60.0
WIDTH = 120  # characters, where the output is no terminal

StoreUrl = Annotated[str, typer.Option("--store", help="Address of the store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

pages_app = typer.Typer(
    help="KV pages that lie outside of the engines, on this machine.", no_args_is_help=True, add_completion=False
)


@pages_app.command("list")
def list_sessions(store: StoreUrl = STORE, as_json: AsJson = False) -> None:
    """List the sessions that have pages, who used them last first. A page that two share counts for both."""
    with _opened(store) as pages:
        found = pages.sessions()
    now_s = time.time()
    if as_json:
        lines = [{**one._asdict(), "idle_s": round(max(0.0, now_s - one.used_s), 1)} for one in found]
        typer.echo(json.dumps(lines))
    elif found:
        _draw(found, now_s, sys.stdout)
    else:
        typer.echo("no session has pages", err=True)


@pages_app.command("stat")
def stat(store: StoreUrl = STORE, as_json: AsJson = False) -> None:
    """Show what is in the store."""
    with _opened(store) as pages:
        found = pages.stats()
    told = {"pages": found.pages, "sessions": found.sessions, "bytes": found.bytes, "size_bytes": found.size_bytes}
    if as_json:
        typer.echo(json.dumps(told | {"aside": found.aside}))
    else:
        for name, number in told.items():
            typer.echo(f"{name:12}{number:>18,}")


@pages_app.command("erase")
def erase(
    session: Annotated[str | None, typer.Option(help="All that this session used.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything, and the files if no engine uses them.")] = False,
    store: StoreUrl = STORE,
    as_json: AsJson = False,
) -> None:
    """Erase pages, and overwrite what they were."""
    if (session is None) != all_:
        raise typer.BadParameter("give either --session S or --all")
    files = False
    with _explained():
        if all_ and (files := _removed(store)):
            gone = None
        else:
            with _opened(store) as pages:
                gone = pages.erase_all(ERASE_S) if session is None else pages.erase(session, ERASE_S)
    if as_json:
        told = gone._asdict() if gone else {}
        typer.echo(json.dumps({**told, "files_removed": files}))
    what = f"erased {gone.pages} pages, {gone.bytes:,} bytes" if gone else "removed the files"
    rest = "; engines use the store: what they were writing as one of them died goes with its files" if all_ else ""
    typer.echo(f"{what}{'' if files or not _has_files(store) else rest}", err=True)


@contextmanager
def _opened(url: str) -> Iterator[PageStore]:
    with _explained():
        store = open_store(url, populate=False, make=False)
        try:
            yield store
        finally:
            store.close()


def _has_files(url: str) -> bool:
    return not url.startswith(("redis://", "rediss://"))


def _removed(url: str) -> bool:
    if not _has_files(url):
        return False
    from vllm_plugin.store.lmdb import remove_files

    return remove_files(url)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (StoreRefused, StoreBusy) as error:
        _fail(str(error))
    except ImportError as error:
        _fail(f"{error}. In Holdfast's directory run: pip install '.[plugin]'")


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


def _draw(sessions: list[Session], now_s: float, out: TextIO) -> None:
    """Draw a table. Names are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("session", "pages", "MiB", "idle", box=None)
    for one in sessions:
        idle = str(timedelta(seconds=max(0, round(now_s - one.used_s))))
        table.add_row(*map(Text, (one.name, f"{one.pages:,}", f"{one.bytes / 2**20:,.1f}", idle)))
    Console(file=out, width=None if out.isatty() else WIDTH).print(table)
