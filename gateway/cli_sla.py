"""`holdfast sla`: what a running gateway promised, and how often it kept that."""

import json
import os
import sys
from typing import Annotated

import typer

from gateway.cli_common import AsJson, ConfigFile, explained, from_admin


def sla(
    admin: Annotated[str | None, typer.Option(help="Root URL of the admin port.")] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how often a running gateway kept its promises, by class and size; HOLDFAST_ADMIN_KEY is its admin key."""
    from gateway.sla_table import show

    with explained():
        told = from_admin(admin, config, "/admin/sla", os.environ)
    if as_json:
        return typer.echo(json.dumps(told))
    return show(told, sys.stdout)
