"""`holdfast drain`: all streams of a server go on at others, so that it may be stopped."""

import json
import os
import sys
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli_common import AsJson, ConfigFile, explained, from_admin

LOOK_S = 0.2  # between questions
WITHIN_S = 60.0


def drain(
    replica: Annotated[str, typer.Argument(help="Its name, as `holdfast replicas` shows it.")],
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Streams that may be on their way at a time; 4 if unsaid.")
    ] = None,
    within: Annotated[float, typer.Option(min=0.0, help="Seconds to wait until it is empty.")] = WITHIN_S,
    admin: Annotated[str | None, typer.Option(help="Root URL of the admin port.")] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send a server no new requests, move its streams to others, and say when it may be stopped.

    A running gateway does it, and goes on if this command is ended. Undo: holdfast replicas --undrain REPLICA.
    HOLDFAST_ADMIN_KEY is its admin key.
    """
    path = f"/admin/replicas/{quote(replica, safe='')}/drain"
    asked = {} if at_once is None else {"at_once": at_once}
    with explained():
        told = from_admin(admin, config, path, os.environ, json.dumps(asked).encode())
        until_s, said = time.monotonic() + within, ""
        while not told.get("empty") and told["draining"] and time.monotonic() < until_s:
            if (line := progress(told)) != said:
                said = line
                typer.echo(line, err=True)
            time.sleep(LOOK_S)
            told = from_admin(admin, config, path, os.environ)
    typer.echo(json.dumps(told) if as_json else ended(told))
    if not told.get("empty"):
        sys.exit(1)


def progress(told: dict[str, Any]) -> str:
    """How far it is, in a line."""
    line = f"{told['replica']}: {told['moved']} moved, {told['moving']} on their way, {told['running']} still there"
    return "; ".join([line, *_alone(told)])


def ended(told: dict[str, Any]) -> str:
    """How it ended, in lines."""
    name, running = told["replica"], told["running"]
    if not told["draining"]:
        return f"{name}: it was undrained meanwhile, and gets requests again"
    moved, left = told["moved"], sum(told["left"].values())
    pause, sessions = told.get("pause_ms"), told.get("sessions", 0)
    counts = f"{name}: {moved} {'stream' if moved == 1 else 'streams'} moved"
    counts += f" (pauses of {pause['p50']:.0f} ms, {pause['most']:.0f} ms at most)" if pause else ""
    counts += f", {sessions} idle {'session' if sessions == 1 else 'sessions'} too" if sessions else ""
    counts += f", {left} left to finish"
    if told["empty"]:
        return f"{counts}, empty after {told['took_s']:.1f} s; it may be stopped"
    reasons = [f"{count} left: {why}" for why, count in told["left"].items()]
    still = f"{counts}, {running} still there after {told['took_s']:.1f} s; do not stop it yet"
    return "\n".join([still, *_alone(told), *reasons])


def _alone(told: dict[str, Any]) -> list[str]:
    return [f"no other server of {model} can take a stream now" for model in told["alone"]]
