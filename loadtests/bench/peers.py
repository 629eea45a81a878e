"""A gateway that is measured: how it is started, alone on its core, and when it is there."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.local.leashed import Leashed
from gateway.local.ports import free_ports
from loadtests.bench.words import MODEL

ROOT = Path(__file__).resolve().parents[2]
START_S_MAX = 120.0  # litellm's imports alone take many seconds


@dataclass(frozen=True)
class Recipe:
    """How a peer is started: from its port, the upstream's URL and an empty folder, to a command.

    share: of the load, and rounds: how many it takes part in; for one that cannot carry all of it.
    loads: what it takes part in, where that is not everything.
    holds: how many times its memory is measured with streams held open.
    everywhere: it has every core, those of upstream and clients as well.
    slow: it is started once and not for every round. version: as it says itself; may raise Missing.
    named: it takes part only where it is asked for by name.
    """

    name: str
    command: Callable[["Place"], list[str]] | None
    share: float = 1.0
    rounds: int = 1_000
    loads: tuple[str, ...] | None = None
    holds: int = 1
    everywhere: bool = False
    slow: bool = False
    version: Callable[[], str] | None = None
    named: bool = False

    def takes_part(self, load: str, number: int) -> bool:
        """Whether it does in a load, in a round."""
        return number < self.rounds and (self.loads is None or load in self.loads)


@dataclass
class Place:
    """Where a peer runs. environment, headers: what its process, and what its clients, need besides.

    beside: what runs for it, and ends after it. commands: says how many it has had of that so far.
    """

    port: int
    upstream: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    beside: list[Leashed] = field(default_factory=list)
    commands: Callable[[], int] | None = None


class Missing(Exception):
    """A peer that is not installed."""


class Peer:
    """A running gateway, or none at all: then the clients talk to the upstream itself."""

    def __init__(self, recipe: Recipe, upstream_port: int, folder: Path, cores: Sequence[int]) -> None:
        """Start it and wait until it answers. Raises Missing, or LaunchFailed. cores: the first is for it alone."""
        self.recipe, self.name, self.pid = recipe, recipe.name, 0
        self._upstream_port, self._folder, self._starts = upstream_port, folder, 0
        self._cores = cores if recipe.everywhere else cores[:1]
        self._process: Leashed | None = None
        self.version = recipe.version() if recipe.version is not None else ""
        self._start()

    def again(self) -> None:
        """Start it anew: where a process happens to have its memory is worth some percent. Not who takes long to."""
        if self._process is not None and not self.recipe.slow:
            self.stop()
            self._start()

    def _start(self) -> None:
        self._starts += 1
        port, folder = self._upstream_port, self._folder / f"{self.name} {self._starts}"
        self.place = Place(port, f"http://127.0.0.1:{port}", folder)
        if self.recipe.command is None:
            return
        self.place.folder.mkdir()
        (self.place.port,) = free_ports(1)
        try:
            command, log = self.recipe.command(self.place), self.place.folder / "log"
            environment = os.environ | self.place.environment
            self._process = Leashed(self.name, command, log=log, environment=environment)
            with pinned(*self._cores):
                self.pid = self._process.start().pid
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process in (self._process, *self.place.beside):
            if process is not None:
                process.stop()

    def _wait(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_S_MAX
        while not self._answers():
            if not self._process.alive or time.monotonic() > deadline_s:
                raise self._process.failure("does not answer")
            time.sleep(0.1)

    def _answers(self) -> bool:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "tokens=1 every_us=0"}]})
        headers = {"content-type": "application/json", **self.place.headers}
        url = f"http://127.0.0.1:{self.place.port}/v1/chat/completions"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers), timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False


@contextmanager
def pinned(*cores: int) -> Iterator[None]:
    """Have what is started meanwhile run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
