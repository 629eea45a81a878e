"""The real gateway as a process of its own: `holdfast serve` in front of whatever is given.

with Gateway(tmp_path, [active.url, standby.url], tokenizer=path) as gateway:
    key = gateway.keys_create("alice", "1000"); ... gateway.url ...; gateway.settled(request_id)
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar

from gateway.books import journal
from gateway.books.keys import Keys, key_id_of
from gateway.books.ledger.tables import Balance, read_balances
from gateway.local.leashed import LEASH
from gateway.local.ports import free_ports
from guards.budget import Limit

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
HOLDFAST = Path(sys.executable).with_name("holdfast")
START_S_MAX = 20.0
STOP_S_MAX = 20.0
CALL_S_MAX = 5.0
CLI_S_MAX = 30.0
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


class Process(Protocol):
    """What of Popen a gateway's owner uses."""

    pid: int

    def poll(self) -> int | None:
        """The exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended. Raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int, /) -> None:
        """Nothing where it has ended."""


class Gateway:
    """A running gateway with its data and log in `folder`; its process group ends with `stop` or `kill`.

    upstreams: root URLs; the first is active, the others stand by, unless `standby` is false.
    discovery: name no model in the configuration, only `upstreams`; all are active then, and the first is asked first.
    tokenizer: the served model's tokenizer.json; None leaves text to /detokenize.
    command: what is run as `holdfast`.
    leashed: it also ends when this process does, kill -9 included.
    cheaper: a model that answers in the first one's stead, and its server.
    of_model: further parts of the first model's entry.
    more: further parts of holdfast.yaml, such as timeouts={"drain_s": 1}.
    """

    def __init__(
        self,
        folder: Path,
        upstreams: Sequence[str],
        *,
        model: str = "stub",
        tokenizer: Path | None = None,
        discovery: bool = False,
        standby: bool = True,
        wait: bool = True,
        command: Sequence[str] = (str(HOLDFAST),),
        leashed: bool = False,
        cheaper: tuple[str, str] | None = None,
        of_model: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        if discovery:
            more.setdefault("routing", {"sessions": False, "prefixes": False})
        self._command, self._leashed = command, leashed
        self.folder, self.data, self.log_file = folder, folder / "data", folder / "gateway.log"
        self.port, self.admin_port = free_ports(2)
        self.url, self.admin_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.admin_port}"
        self.secrets: list[str] = []
        self.config_file = folder / "holdfast.yaml"
        replicas = [
            {"url": url, "role": "standby" if number and standby else "active"} for number, url in enumerate(upstreams)
        ]
        served: dict[str, Any] = {"name": model, "replicas": replicas, **(of_model or {})}
        if tokenizer is not None:
            served["tokenizer"] = str(tokenizer)
        models = [served]
        if cheaper is not None:
            name, url = cheaper
            served["cheaper"] = name
            models.append({"name": name, "replicas": [{"url": url}]})
        config = {"listen": {"port": self.port, "admin_port": self.admin_port}, "data": str(self.data), **more}
        config |= {"upstreams": [{"url": url} for url in upstreams]} if discovery else {"models": models}
        self.config_file.write_text(json.dumps(config))  # JSON is YAML
        self.process = self._start()
        if wait:
            self.wait_ready()

    def restart(self, **more: Any) -> None:
        """Start it again once it has ended, with other parts of holdfast.yaml; wait until it is ready."""
        self.config_file.write_text(json.dumps(json.loads(self.config_file.read_text()) | more))
        self.process = self._start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until /readyz says yes. Raises RuntimeError with the log where it does not."""
        deadline = time.monotonic() + START_S_MAX
        while not (self._listens() and self.get("/readyz")[0] == 200):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the gateway did not become ready; its log:\n{self.log()}")
            time.sleep(0.02)

    def get(self, path: str, base: str | None = None) -> tuple[int, bytes]:
        """GET from the public port, or from `base`; status 0 where nothing listens."""
        try:
            with urllib.request.urlopen((base or self.url) + path, timeout=CALL_S_MAX) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    # ---------------------------------------------------------------- keys and books

    def keys_create(self, user: str, tokens: int | str | None = None, org: str | None = None) -> str:
        """Make a key by the command line; remembered, to be looked for in the log."""
        more = [f"--tokens={tokens}"] if tokens is not None else []
        more += [f"--org={org}"] if org is not None else []
        secret = self.cli("keys", "create", f"--user={user}", *more).strip()
        self.secrets.append(secret)
        return secret

    def key(self, user: str, tokens: int | None = None, org: str | None = None) -> str:
        """The same without a process, which takes a second on a busy machine."""
        keys = Keys(self.data / "keys.db")
        secret, _ = keys.create(user, org, [Limit(tokens)] if tokens is not None else [])
        keys.close()
        self.secrets.append(secret)
        return secret

    def cli(self, *arguments: str) -> str:
        """Run `holdfast ...` on this gateway's data; answers its standard output."""
        return self._run([*arguments, "--data", str(self.data)])

    def _run(self, arguments: Sequence[str]) -> str:
        command = [str(HOLDFAST), *arguments]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=CLI_S_MAX).stdout

    def balances(self) -> list[Balance]:
        """Every account, from the ledger's own file."""
        return read_balances(self.data)

    def balance(self, secret: str) -> Balance:
        """The account of one key."""
        (found,) = [one for one in self.balances() if one.scope == f"key:{id_of(secret)}"]
        return found

    def paid(self, secret: str) -> Balance:
        """The account of one key once none of it is held: an answer is there a moment before its charge is on disk."""
        return until(lambda: one if (one := self.balance(secret)).held == 0 else None)

    def journal(self) -> list[dict[str, Any]]:
        """All facts on disk by now."""
        return list(journal.read(self.data / "journal.jsonl"))

    def settled(self, request_id: str) -> dict[str, Any]:
        """The one `request.settled` of a request, waited for. Raises AssertionError when there are more."""

        def found() -> list[dict[str, Any]]:
            facts = [fact for fact in self.journal() if fact.get("request_id") == request_id]
            return [fact for fact in facts if fact["kind"] == "request.settled"]

        (fact,) = until(found)
        return fact

    def settlements(self, secret: str) -> list[dict[str, Any]]:
        """Every `request.settled` of one key."""
        mine = [fact for fact in self.journal() if fact.get("key_id") == id_of(secret)]
        return [fact for fact in mine if fact["kind"] == "request.settled"]

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples with this name and these labels; 0.0 where there is none."""
        total = 0.0
        for line in self.get("/metrics", self.admin_url)[1].decode().splitlines():
            sample = _SAMPLE.fullmatch(line)
            if sample is not None and sample[1] == name:
                said = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
                total += float(sample[3]) if labels.items() <= said.items() else 0.0
        return total

    def metrics(self) -> dict[str, float]:
        """Every sample, by name and labels as the exposition writes them."""
        samples = map(_SAMPLE.fullmatch, self.get("/metrics", self.admin_url)[1].decode().splitlines())
        return {f"{one[1]}{{{one[2]}}}" if one[2] else one[1]: float(one[3]) for one in samples if one is not None}

    # ---------------------------------------------------------------- the process

    def log(self) -> str:
        """What the gateway wrote to standard error."""
        return self.log_file.read_text(errors="replace")

    def faults(self) -> list[str]:
        """What must never be in the log: tracebacks, bugs, and the secrets made here."""
        log = self.log()
        marks = ["Traceback", "request.fault", "stream.fault", "Unclosed", "never retrieved", "Bearer", *self.secrets]
        return [mark for mark in marks if mark in log]

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def terminate(self) -> None:
        """Ask it to finish, by SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and wait for the end; the exit status. Safe to call again."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(STOP_S_MAX)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process group by SIGKILL."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):  # a leash may yet be about to say that it ended
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _listens(self) -> bool:
        """Whether it is this very gateway that has the port: other tests on this machine draw ports too."""
        return f'"url":"{self.url}/v1"' in self.log()

    def _start(self) -> Process:
        arguments = ["serve", "--config", str(self.config_file)]
        with self.log_file.open("ab") as log:
            return self._begin(arguments, log)

    def _begin(self, arguments: Sequence[str], log: IO[bytes]) -> Process:
        """Run the command, in a session of its own."""
        command = [*self._command, *arguments]
        if self._leashed:
            return LeashedProcess(command, log)
        return subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def id_of(secret: str) -> str:
    """The key id of a secret, as books and journal name it."""
    return key_id_of(sha256(secret.encode()).digest())


class LeashedProcess:
    """A command on a leash (gateway/local/leash.py). pid: the command's."""

    def __init__(self, command: Sequence[str], log: IO[bytes]) -> None:
        self._leash = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LEASH), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        assert self._leash.stdout is not None
        line = self._leash.stdout.readline()
        if not line:
            raise OSError(f"{command[0]} could not be started")
        self.pid = int(line)

    def poll(self) -> int | None:
        """The exit status, as a number of 0 to 255 also after a signal; None while it runs."""
        return self._leash.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and let go of the leash. Raises subprocess.TimeoutExpired."""
        status = self._leash.wait(timeout)
        for pipe in (self._leash.stdin, self._leash.stdout):
            if pipe is not None:
                pipe.close()
        return status

    def send_signal(self, number: int) -> None:
        """While the leash lives, the id cannot belong to anybody else."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class NotSeen(AssertionError):
    """What was waited for did not come: a test that waits for it fails."""


def until(look: Callable[[], T | None], seconds: float = 10.0, what: str = "") -> T:
    """Look again and again until something is there. Raises NotSeen, with what was waited for."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise NotSeen(f"waited in vain{what and f' for {what}'}, {seconds:g} s")
        time.sleep(0.02)
    return seen
