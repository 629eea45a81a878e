"""Site: a gateway of one's own in a folder, used as an operator would: by its command line."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.local.leashed import Leashed
from gateway.local.ports import free_ports

HOLDFAST = str(Path(sys.executable).with_name("holdfast"))
GATEWAY_READY_S_MAX = 30.0
CLI_S_MAX = 30.0
SETTLED_S_MAX = 15.0  # the journal is written in groups, and a busy disk takes its time


class SiteFailed(Exception):
    """A command of the site failed; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What `holdfast keys list` says of a key, in tokens."""

    user: str
    tokens: int
    spent: int
    held: int
    free: int

    def __str__(self) -> str:
        return f"budget of {self.user}: {self.tokens:,} tokens, {self.spent:,} spent, {self.free:,} free"


class Site:
    """One gateway with its configuration and books in `folder`; `gateway` is its process, not yet started.

    model: as it is served. tokenizer: its tokenizer.json. replicas: root URLs of vLLM servers.
    """

    def __init__(self, folder: Path, model: str, tokenizer: Path, replicas: Sequence[str]) -> None:
        port, admin_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self.data = folder / "data"
        self._file = folder / "holdfast.yaml"
        served = {"name": model, "tokenizer": str(tokenizer), "replicas": [{"url": url} for url in replicas]}
        config = {"listen": {"port": port, "admin_port": admin_port}, "data": str(self.data), "models": [served]}
        self._file.write_text(json.dumps(config, indent=2))  # JSON is YAML
        command = [HOLDFAST, "serve", "--config", str(self._file)]
        self.gateway = Leashed("The gateway", command, log=folder / "gateway.log", environment=os.environ)

    def cli(self, *arguments: str) -> str:
        """Run `holdfast ARGUMENTS --config FILE` and return what it prints."""
        done = subprocess.run(
            [HOLDFAST, *arguments, "--config", str(self._file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLI_S_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise SiteFailed(f"holdfast {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def wait_ready(self) -> None:
        """Return when the gateway is ready to serve."""
        deadline_s = time.monotonic() + GATEWAY_READY_S_MAX
        host = self.url.removeprefix("http://")
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(host, timeout=2)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            if not self.gateway.alive:
                raise self.gateway.failure("died while starting")
            if time.monotonic() > deadline_s:
                raise self.gateway.failure(f"was not ready after {GATEWAY_READY_S_MAX:.0f} s")
            time.sleep(0.05)

    def budget(self) -> Budget:
        """What the only key has."""
        (line,) = json.loads(self.cli("keys", "list", "--json"))
        (budget,) = line["budgets"]
        return Budget(line["user"], budget["amount"], budget["spent"], budget["held"], budget["free"])

    def settled_budget(self, spent_expected: int) -> Budget:
        """Like `budget`; waits a moment for what was expected, and returns what is there."""
        deadline_s = time.monotonic() + SETTLED_S_MAX
        while True:
            budget = self.budget()
            if (budget.held, budget.spent) == (0, spent_expected) or time.monotonic() > deadline_s:
                return budget
            time.sleep(0.1)

    def legs(self) -> list[str]:
        """The servers that worked on the only request, in order; waits a moment for the journal to have its end."""
        deadline_s = time.monotonic() + SETTLED_S_MAX
        while True:
            facts = [json.loads(line) for line in (self.data / "journal.jsonl").read_text().splitlines()]
            if any(fact["kind"] == "request.settled" for fact in facts):
                return [fact["replica"] for fact in facts if fact["kind"] == "leg.opened"]
            if time.monotonic() > deadline_s:
                raise SiteFailed("the journal does not have the end of the request")
            time.sleep(0.1)
