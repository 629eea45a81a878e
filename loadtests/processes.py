"""Stub upstreams as processes of their own, for tests and load tests.

with start_stub(tokens_per_s=50) as stub:
    ... stub.url ...; stub.arm("cut", at=5); stub.stats()["requests"]
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
CALL_S_MAX = 10.0
STOP_S_MAX = 5.0


@dataclass
class StubProcess:
    """A running stub upstream; its process group ends with `stop`."""

    url: str
    port: int
    process: subprocess.Popen[str]

    def arm(self, fault: str | None, times: int = 1, **order: Any) -> None:
        """Hit the next requests with a fault (its `at` counts this server's tokens); None disarms."""
        self._call("/stub/fault", {"fault": fault, "times": times, **order})

    def health(self, status: int) -> None:
        """Let /health answer with that status from now on."""
        self._call("/stub/fault", {"health": status})

    def freeze_engine(self) -> None:
        """Stop computing under a living server: /health and /metrics go on answering, nothing else comes."""
        self._call("/stub/fault", {"engine": "frozen"})

    def thaw_engine(self) -> None:
        """Let a frozen engine go on where it was."""
        self._call("/stub/fault", {"engine": "running"})

    def slow(self, slowness: float) -> None:
        """Let the engine take so many times as long for everything; 1 is as fast as ever."""
        self._call("/stub/fault", {"slowness": slowness})

    def gauges(self, **values: float) -> None:
        """Let /metrics say these values, by vLLM's names without its prefix; none: the truth again."""
        self._call("/stub/fault", {"gauges": values})

    def pages(self, *corrupt: tuple[str, str, int], **said: Any) -> None:
        """Let it have Holdfast's plugin: (kind, where, pages) that were found corrupt, and what else it says."""
        found = [{"kind": kind, "where": where, "pages": pages} for kind, where, pages in corrupt]
        self._call("/stub/fault", {"pages": {"corrupt": found} | said})

    def kin(self, **said: Any) -> None:
        """What its chat template and its sampling defaults are from now on: `template`, `sampling`."""
        self._call("/stub/fault", said)

    def no_pages(self) -> None:
        """Take the plugin away again."""
        self._call("/stub/fault", {"pages": None})

    def stats(self) -> dict[str, Any]:
        """Give the stub's books: requests, open_streams, tokens_sent, aborted, recorded."""
        stats: dict[str, Any] = self._call("/stub/stats")
        return stats

    def kill(self) -> None:
        """End the process group by SIGKILL, in mid-stream if need be."""
        self._signal(signal.SIGKILL)
        self.process.wait(STOP_S_MAX)

    def terminate(self) -> None:
        """Ask the process to go down by SIGTERM: it refuses connections, and open answers end with an error."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the process group without ending it: its sockets stay open and silent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process group go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process; safe to call again."""
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=CALL_S_MAX) as response:
            return json.load(response)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def start_stub(**options: Any) -> StubProcess:
    """Start a stub upstream on a free port; options are its command line's, with underscores.

    Raises RuntimeError when it does not come up.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.stub_upstream", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        process.kill()
        process.wait()
        raise RuntimeError(f"the stub upstream did not start; it said {line!r}")
    address = line.removeprefix("listening on ").strip()
    return StubProcess(f"http://{address}", int(address.rsplit(":", 1)[1]), process)
