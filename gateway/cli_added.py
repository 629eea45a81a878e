"""Commands that other packages of Holdfast add to the command line, such as `holdfast pages`.

The gateway imports none of them: pyproject.toml names them, under the entry points `holdfast.commands`. They are looked
for when a command is asked for that is none of the gateway's own, or a list of all: whoever runs another one waits for
nothing. What they need may not be installed where only the gateway is.
"""

from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gateway.cli_common import fail

GROUP = "holdfast.commands"
Command = Any  # click's or, from some version of typer on, its own
EXTRAS = {"load": "loadtest", "bench": "loadtest"}  # that bring what a command needs; else the plugin's
ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class WithAdded(TyperGroup):
    """The gateway's own commands, and those that were added: those never take the place of its own."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, its own first."""
        own = super().list_commands(ctx)
        return own + sorted(set(added()) - set(own))

    def get_command(self, ctx: Any, name: str) -> Command | None:
        """A command; one that says what it lacks where it cannot be had; None where there is none of that name."""
        own = super().get_command(ctx, name)
        if own or (entry := added().get(name)) is None:
            return own
        try:
            command = get_command(entry.load())
        except ImportError as error:
            command = _lacking(name, error)
        command.name = name
        return command


def added() -> dict[str, EntryPoint]:
    """What this very distribution adds, by name; nothing where it runs from a source tree."""
    try:
        found = distribution("holdfast").entry_points
    except PackageNotFoundError:
        return {}
    return {entry.name: entry for entry in found.select(group=GROUP)}


def _lacking(name: str, error: ImportError) -> Command:
    stand_in, extra = typer.Typer(), EXTRAS.get(name, "plugin")

    @stand_in.command(context_settings=ANYTHING, help=f"Not installed: it comes with the extra «{extra}».")
    def told() -> None:
        fail(f"holdfast {name}: {error}. In Holdfast's directory run: pip install '.[{extra}]'")

    return get_command(stand_in)
