"""`holdfast replicas`: what a running gateway thinks of its servers, and why."""

import json
import os
import sys
from typing import Annotated
from urllib.parse import quote

import typer

from gateway.cli_common import AsJson, ConfigFile, explained, from_admin


def replicas(
    admin: Annotated[str | None, typer.Option(help="Root URL of the admin port.")] = None,
    config: ConfigFile = None,
    undrain: Annotated[
        str | None, typer.Option(metavar="REPLICA", help="Send this one requests again, for its memory was mended.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the servers of a running gateway, and why it trusts them or not; HOLDFAST_ADMIN_KEY is its admin key."""
    from gateway.replica_table import show

    with explained():
        if undrain is not None:
            path = f"/admin/replicas/{quote(undrain, safe='')}/undrain"
            done = from_admin(admin, config, path, os.environ, b"{}")
            said = "gets requests again" if done["undrained"] else "was not drained"
            return typer.echo(json.dumps(done) if as_json else f"{undrain} {said}")
        told = from_admin(admin, config, "/admin/replicas", os.environ)
    if as_json:
        return typer.echo(json.dumps(told))
    return show(told, sys.stdout)
