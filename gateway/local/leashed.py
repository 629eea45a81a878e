"""Leashed: a server process with its children, in a group of its own, that never outlives this process."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

LEASH = Path(__file__).with_name("leash.py")
DEATH_S_MAX = 10.0  # from SIGKILL to the end of the last process of the group
POLL_S = 0.02
ERROR = re.compile(r"(?:^|[ .])\w+(?:Error|Exception): ")


class LaunchFailed(RuntimeError):
    """The server could not be started; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Process:
    """One living process of a group. name: its command line."""

    pid: int
    name: str


class Leashed:
    """A command from `start` to `stop`; however this process ends, the command's whole group ends with it.

    label: how errors call it. log: file that receives its output. polite_s_max: from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        polite_s_max: float = 3.0,
    ) -> None:
        self.label = label
        self.log = log
        self.pid = 0  # the server's own, and its group's id
        self._command = command
        self._environment = environment
        self._polite_s_max = polite_s_max
        self._leash: subprocess.Popen[str] | None = None

    @property
    def alive(self) -> bool:
        """Tell whether the server process lives (stopped by SIGSTOP counts as living)."""
        return self._leash is not None and self._leash.poll() is None

    def start(self) -> Self:
        """Start it and return at once."""
        assert not self.alive, "started twice"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._leash = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LEASH), *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C at the terminal is our business, not the server's
                env=self._environment,
            )
        assert self._leash.stdout is not None
        first_line = self._leash.stdout.readline()
        if not first_line:
            self.stop()
            raise self.failure("could not be started")
        self.pid = int(first_line)
        return self

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal to every process of the server; do not wait."""
        if self.alive and self.pid:  # while the leash lives, the group's id cannot belong to anybody else
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig)

    def stop(self) -> None:
        """End the server, politely at first. Nothing of it is left afterwards; may be called again."""
        if self._leash is None:
            return
        self.kill(signal.SIGTERM)
        self.kill(signal.SIGCONT)
        if not self.wait_dead(self._polite_s_max):
            self.kill(signal.SIGKILL)
            self.wait_dead()
        for pipe in (self._leash.stdin, self._leash.stdout):
            if pipe is not None:
                pipe.close()
        self._leash.wait(DEATH_S_MAX)

    def wait_dead(self, timeout_s: float = DEATH_S_MAX) -> bool:
        """Wait until no process of the server is left; False when some still live after timeout_s."""
        deadline_s = time.monotonic() + timeout_s
        while self.alive or self.processes():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(POLL_S)
        return True

    def processes(self) -> list[Process]:
        """The living processes of the server and its children."""
        return group(self.pid) if self.pid else []

    def log_tail(self, lines: int = 25) -> str:
        """The end of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def failure(self, what: str) -> LaunchFailed:
        """An error that says what happened and why, as far as the log knows.

        vLLM's first error is the cause; what its log ends with are the consequences in other processes.
        """
        errors = (line for line in self.log.read_text(errors="replace").splitlines() if ERROR.search(line))
        first = "".join(f"\nFirst error: {line.strip()}" for line in itertools.islice(errors, 1))
        return LaunchFailed(f"{self.label} {what}. The end of {self.log}:\n{self.log_tail()}{first}")

    def __enter__(self) -> Self:
        return self if self.alive else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def group(group_id: int) -> list[Process]:
    """The living processes of a process group, from /proc; zombies do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
                # pid (comm) state ppid pgrp ...; comm may hold spaces and brackets.
                state, _, group_field = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group_field) == group_id and state != "Z":
                    name = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append(Process(int(entry.name), name))
    return found
