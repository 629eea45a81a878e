"""`holdfast move`: one session, and all that runs of it, goes to a replica that is named."""

import json
import os
import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli_common import AsJson, ConfigFile, explained, from_admin

MOVE_S_MAX = 30.0  # the gateway gives up before


def move(
    session: Annotated[str, typer.Argument(help="As its client calls it, in x-session-id.")],
    to: Annotated[str, typer.Option(metavar="REPLICA", help="Where it goes, as `holdfast replicas` shows it.")],
    key: Annotated[
        str | None, typer.Option(metavar="KEY_ID", help="Whose it is, where several have one so named.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="The same, by the key's user.")] = None,
    admin: Annotated[str | None, typer.Option(help="Root URL of the admin port.")] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Have a session live at another server: its streams go on there, and its next turns go there.

    HOLDFAST_ADMIN_KEY is the admin key.
    """
    said = {"to": to, "key_id": key, "user": user}
    with explained():
        path = f"/admin/sessions/{quote(session, safe='')}/move"
        told = from_admin(admin, config, path, os.environ, json.dumps(said).encode(), within_s=MOVE_S_MAX)
    typer.echo(json.dumps(told) if as_json else ended(told))
    if told["left"]:
        sys.exit(1)


def ended(told: dict[str, Any]) -> str:
    """What happened, in lines."""
    count, moved, pause = told["streams"], told["moved"], told["pause_ms"]
    was = " and ".join(told["from"])
    lines = [f"{told['session']}: lives at {told['to']} now" + (f", no longer at {was}" if was else "")]
    if count:
        waited = f", a pause of {pause['most']:.0f} ms at most" if pause else ""
        computed = f", {told['recomputed_tokens']} tokens computed again"
        lines.append(f"{moved} of {count} {'stream' if count == 1 else 'streams'} moved{waited}{computed}")
    return "\n".join([*lines, *(f"{many} left: {why}" for why, many in told["left"].items())])
