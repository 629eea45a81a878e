"""What commands share: where the books are, and how errors are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn

import typer

from gateway.config import DeclaredBudget, DeclaredKey, parse_limit
from gateway.config_file import ConfigErrors, load
from guards.budget import Limit
from guards.refusal import Refused

if TYPE_CHECKING:
    from gateway.books.keys import Keys

DATA = Path("holdfast-data")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Data directory.  [default: ./holdfast-data]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Books(NamedTuple):
    """Where keys, ledger and journal are, and what the configuration declares beside them."""

    data: Path
    keys: tuple[DeclaredKey, ...]
    budgets: tuple[DeclaredBudget, ...]


@contextmanager
def explained() -> Iterator[None]:
    """Turn expected errors into lines on standard error and exit status 1."""
    try:
        yield
    except ConfigErrors as error:
        fail(str(error))
    except Refused as error:
        fail(error.detail)
    except BrokenPipeError:
        raise  # the reader left: click ends quietly
    except OSError as error:  # such as a port that is in use
        fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))


@contextmanager
def keys_of(data: Path | None, config: Path | None, *, make: bool = True) -> "Iterator[Keys]":
    """Open the key store for one command."""
    from gateway.books.keys import Keys

    with explained():
        found = books(data, config)
        if not make and not found.keys and not (found.data / "keys.db").exists():
            fail(f"no keys in {found.data}")
        keys = Keys(found.data / "keys.db", found.keys, budgets=found.budgets)
        try:
            yield keys
        finally:
            keys.close()


def books(data: Path | None, file: Path | None) -> Books:
    """Find the books. --data wins over the file's. Raises ConfigErrors."""
    config = load(file) if file else None
    declared = (config.keys, config.budgets) if config else ((), ())
    return Books(data or (config.data if config else DATA), *declared)


def limit_of(option: str, text: str) -> Limit:
    """Read a limit. Raises BadParameter, naming the option."""
    try:
        return parse_limit(text)
    except ValueError as error:
        hint = getattr(error, "context", {}).get("hint", "")
        raise typer.BadParameter(f"{error}. {hint}", param_hint=option) from None


def fail(message: str) -> NoReturn:
    """Say why on standard error, and end with status 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)
