"""Screen: the terminal, live where there is one, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import IO

from rich.console import Console
from rich.status import Status


class Screen:
    """Where the demo tells its story."""

    def __init__(self, file: IO[str]) -> None:
        self._console = Console(file=file, highlight=False)

    def say(self, line: str, style: str | None = None) -> None:
        """Print one line."""
        self._console.out(line, style=style)

    def text(self, piece: str, style: str | None = "cyan") -> None:
        """Print a piece of an answer as it comes; random models speak in control characters, too."""
        shown = "".join(char if char.isprintable() else " " for char in piece)
        self._console.out(shown, style=style, end="", highlight=False)
        self._console.file.flush()

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show that something takes its time; gives a function that tells how far it is."""
        started_s = time.monotonic()
        told: dict[str, None] = {}
        if not self._console.is_terminal:
            self.say(f"{what} ...")
        with self._console.status(what) as status:
            yield lambda note: self._progress(status, what, note, started_s, told)
        if self._console.is_terminal:
            self.say(f"{what}: {time.monotonic() - started_s:.0f} s")

    def _progress(self, status: Status, what: str, note: str, started_s: float, told: dict[str, None]) -> None:
        elapsed_s = time.monotonic() - started_s
        status.update(f"{what}: {elapsed_s:.0f} s, {note}")
        if not self._console.is_terminal and note not in told:
            told[note] = None
            self.say(f"  {elapsed_s:.0f} s  {note}")
