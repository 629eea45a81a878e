"""`holdfast doctor`: what is wrong with a fleet, before a gateway runs in front of it or while one does."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli_common import DATA, UPSTREAM_KEY, AsJson, ConfigFile, DataDir
from gateway.config_file import ConfigErrors, from_upstreams, load, overridden

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.doctor.facts import Finding

COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


def doctor(
    config: ConfigFile = None,
    upstream: Annotated[list[str] | None, typer.Option(help="Root URL of a vLLM server; repeatable.")] = None,
    data: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Look at servers, ledger and this machine, and say what is wrong; status 1 if anything is bad.

    It computes no token, changes nothing and keeps nothing. HOLDFAST_UPSTREAM_KEY is the key of --upstream servers.
    """
    if (config is None) == (not upstream):
        raise typer.BadParameter("give either --config FILE or --upstream URL")
    try:
        found = _looked(_chosen(config, upstream or [], data))
    except ConfigErrors as errors:
        found = _told(errors)
    bad = any(one.level == "bad" for one in found)
    if as_json:
        typer.echo(json.dumps({"ok": not bad, "findings": [one._asdict() for one in found]}))
    else:
        _show(found)
    raise typer.Exit(bad)


def _chosen(file: Path | None, upstreams: list[str], data: Path | None) -> "Config":
    """Raises ConfigErrors."""
    if file is None:
        return from_upstreams(upstreams, data=data or DATA, key=os.environ.get(UPSTREAM_KEY))
    config = load(file)
    return overridden(config, data=data) if data else config


def _looked(config: "Config") -> "list[Finding]":
    from gateway.doctor.inquiry import findings

    return asyncio.run(findings(config, lambda line: typer.echo(line, err=True)))


def _told(errors: ConfigErrors) -> "list[Finding]":
    """A configuration that is wrong, as findings: nothing can be looked at then."""
    from gateway.doctor.facts import Finding, Level

    places = [(f"{one.file}:{one.line}" if one.line else one.file, one) for one in errors.errors]
    said = [
        (place, ": ".join(part for part in (one.field, one.message) if part), one.suggestion) for place, one in places
    ]
    return [Finding(Level.BAD, *parts) for parts in said]


def _show(found: "Sequence[Finding]") -> None:
    colours = sys.stdout.isatty()
    for one in found:
        level = typer.style(f"{one.level:5}", fg=COLOURS[one.level]) if colours else f"{one.level:5}"
        typer.echo(f"{level} {one.about}: {one.said}" + (f". {one.instead}" if one.instead else ""))
    counts = Counter(one.level.value for one in found)
    typer.echo(", ".join(f"{counts[level]} {level}" for level in ("bad", "warn", "ok")), err=True)
