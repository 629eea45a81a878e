"""What commands share: where the books are, and how errors are told."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from gateway.config import DeclaredBudget, DeclaredKey, Listen, parse_limit
from gateway.config_file import ConfigErrors, load
from guards.budget import Limit
from guards.refusal import Refused

if TYPE_CHECKING:
    from gateway.books.keys import Keys
    from gateway.books.ledger.contract import Correction

DATA = Path("holdfast-data")
WAIT_S = 10.0  # for a running gateway to carry out an order: it looks four times a second
ANSWER_S = 10.0  # for an admin port
# From the environment: options can be read by everybody on the machine.
ADMIN_KEY, UPSTREAM_KEY = "HOLDFAST_ADMIN_KEY", "HOLDFAST_UPSTREAM_KEY"

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Data directory.  [default: ./holdfast-data]")]
OpenKeys = Callable[[], "AbstractContextManager[Keys]"]
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


def corrected(
    data: Path, name: str, corrections: "Sequence[Correction]", keys: OpenKeys, *, any_order: bool = False
) -> bool:
    """Correct the books under a name, by the gateway that runs on them or without one; False where it was before.

    keys: opens the key store, through which the gateway hears of it. any_order: whether it is as well if the name was
    given to another order before: then that is made, and not this one. Fails where the gateway does not within WAIT_S.
    """
    from gateway.books.corrections import LeftOut, ledgers, made
    from gateway.books.ledger.orders import OtherOrder
    from gateway.watch import logs

    if not ledgers(data):
        fail(f"there is no ledger in {data}")
    logs.set_up()
    try:
        return made(data, name, corrections, keys, WAIT_S)
    except (ValueError, TimeoutError, LeftOut) as error:
        if any_order and isinstance(error, OtherOrder):
            return False
        fail(str(error))


def from_admin(
    root: str | None,
    config: Path | None,
    path: str,
    environ: Mapping[str, str],
    body: bytes | None = None,
    within_s: float = ANSWER_S,
) -> Any:
    """Ask an admin port, which the configuration tells where `root` does not. Fails where it does not answer.

    body: JSON, for POST.
    """
    listen = load(config).listen if config else Listen()
    host = f"[{listen.admin_host}]" if ":" in listen.admin_host else listen.admin_host
    url = (root or f"http://{host}:{listen.admin_port}").rstrip("/") + path
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter("write a URL such as http://127.0.0.1:8081", param_hint="--admin")
    headers = {"authorization": f"Bearer {environ[ADMIN_KEY]}"} if environ.get(ADMIN_KEY) else {}
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the key is nobody else's
        headers |= {"content-type": "application/json"} if body is not None else {}
        with direct.open(urllib.request.Request(url, body, headers), timeout=within_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        fail(f"{url}: {error.code} {error.read(2000).decode(errors='replace')}")
    except (OSError, ValueError) as error:
        fail(f"no gateway answers at {url}: {getattr(error, 'reason', error)}")


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
