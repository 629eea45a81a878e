"""Who is measured, and how each is started, alone on its core."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from gateway.local.leashed import Leashed
from loadtests.bench.words import MODEL

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-peers"
HOW_TO_INSTALL = (
    f"python3 -m venv --without-pip {VENV.name} && "
    f"python3 -m pip --python {VENV.name}/bin/python install vllm-router 'litellm[proxy]'"
)
START_S_MAX = 120.0  # litellm's imports alone take many seconds
BUDGET = "1000000000000/day"
STREAMS_MAX = 20_000
NOWHERE = {"sessions": False, "prefixes": False}  # what requests are near to
PROMISING = {
    "name": "default",
    "classes": [{"name": "all", "first_ms": 60_000, "between_ms": 1000, "total_ms": 600_000}],
}


@dataclass(frozen=True)
class Recipe:
    """How a peer is started: from its port, the upstream's URL and an empty folder, to a command.

    share: of the load, and rounds: how many it takes part in; for one that cannot carry all of it.
    holds: whether its memory is measured with streams held open.
    named: it takes part only where it is asked for by name.
    """

    name: str
    command: Callable[["Place"], list[str]] | None
    share: float = 1.0
    rounds: int = 1_000
    holds: bool = True
    needs: str = ""  # a program in .venv-peers
    named: bool = False


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

    def __init__(self, recipe: Recipe, upstream_port: int, folder: Path, core: int) -> None:
        """Start it and wait until it answers. Raises Missing, or LaunchFailed."""
        self.recipe, self.name, self.pid = recipe, recipe.name, 0
        self._upstream_port, self._folder, self._core, self._starts = upstream_port, folder, core, 0
        self._process: Leashed | None = None
        if recipe.needs and not (VENV / "bin" / recipe.needs).exists():
            raise Missing(f"{recipe.needs} is not installed; to have it measured: {HOW_TO_INSTALL}")
        self._start()

    def again(self) -> None:
        """Start it anew: where a process happens to have its memory is worth some percent. Not who takes long to."""
        if self._process is not None and not self.recipe.needs:
            self.stop()
            self._start()

    def _start(self) -> None:
        self._starts += 1
        port, folder = self._upstream_port, self._folder / f"{self.name} {self._starts}"
        self.place = Place(port, f"http://127.0.0.1:{port}", folder)
        if self.recipe.command is None:
            return
        self.place.folder.mkdir()
        self.place.port = free_port()
        try:
            command, log = self.recipe.command(self.place), self.place.folder / "log"
            environment = os.environ | self.place.environment
            self._process = Leashed(self.name, command, log=log, environment=environment)
            with pinned(self._core):
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
def pinned(core: int) -> Iterator[None]:
    """Have what is started meanwhile run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def holdfast(
    tree: Path = ROOT, key: tuple[str, ...] = (f"--tokens={BUDGET}",), **more: Any
) -> Callable[[Place], list[str]]:
    """As users run it: a key with a budget, ledger, journal and meters on; only the bound on requests is raised.

    key: how the key is made; more: what else the configuration says.
    """

    def command(place: Place) -> list[str]:
        place.environment["PYTHONPATH"] = str(tree)
        program = [sys.executable, "-P", "-m", "gateway"]
        config, data = place.folder / "holdfast.yaml", place.folder / "data"
        models = [{"name": MODEL, "replicas": [{"url": place.upstream}]}]
        listen = {"port": place.port, "admin_port": free_port()}
        limits = {"requests_in_flight": STREAMS_MAX}
        said = {"listen": listen, "data": str(data), "models": models, "limits": limits, **more}
        config.write_text(json.dumps(said))
        made = subprocess.run(
            [*program, "keys", "create", "--user=bench", *key, f"--data={data}"],
            env=os.environ | place.environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        place.headers["authorization"] = f"Bearer {made.stdout.strip()}"
        return [*program, "serve", f"--config={config}"]

    return command


def four_levels(*, redis: bool = False) -> Callable[[Place], list[str]]:
    """The same under limits of an org, a team, a user and a key, in money and in every kind of token.

    redis: on rights leased from there. Raises Missing where it is not installed.
    """
    budgets = [
        {"org": "acme", "limits": ["1000000 USD/month", BUDGET]},
        {"org": "acme", "team": "search", "limits": [BUDGET]},
        {"org": "acme", "user": "bench", "limits": ["1000000000000 output tokens/hour"]},
    ]
    key = ("--org=acme", "--team=search", f"--tokens={BUDGET}")
    said: dict[str, Any] = {"budgets": budgets, "prices": [{"model": MODEL, "input": 0.5, "output": 1.5}]}
    if not redis:
        return holdfast(key=key, **said)

    def command(place: Place) -> list[str]:
        url = redis_server(place)
        program = holdfast(key=key, ledger={"url": url}, **said)(place)
        begin = [*program[: program.index("serve")], "ledger", "begin", program[-1]]
        subprocess.run(begin, env=os.environ | place.environment, check=True, capture_output=True)
        return program

    return command


def redis_server(place: Place) -> str:
    """Start one beside a peer; its URL. Raises Missing."""
    unpacked = ROOT / ".cache" / "redis" / "redis-server"
    found = str(unpacked) if unpacked.exists() else shutil.which("redis-server")
    if found is None:
        raise Missing("redis-server is not installed: python3 scripts/install.py redis")
    port, folder = free_port(), place.folder / "redis"
    folder.mkdir()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    command = [found, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    place.beside.append(Leashed("redis-server", command, log=folder / "log", environment=os.environ))
    place.beside[-1].start()
    client = redis.Redis(port=port)
    for _ in range(100):
        with suppress(redis.RedisError):
            client.ping()
            break
        time.sleep(0.05)

    def commands() -> int:
        calls = client.info("commandstats")
        return sum(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))

    place.commands = commands
    return f"redis://127.0.0.1:{port}/0"


def passthrough(*how: str) -> Callable[[Place], list[str]]:
    """A bare pass-through. how: `barest` for what nobody could leave anything out of."""

    def command(place: Place) -> list[str]:
        place.environment["PYTHONPATH"] = str(ROOT)
        return [sys.executable, "-m", "loadtests.bench.passthrough", str(place.port), place.upstream, *how]

    return command


def vllm_router(place: Place) -> list[str]:
    return [
        str(VENV / "bin" / "vllm-router"), "--host=127.0.0.1", f"--port={place.port}", "--policy=round_robin",
        "--worker-urls", place.upstream, "--log-level=error", f"--prometheus-port={free_port()}",
        f"--max-concurrent-requests={STREAMS_MAX}", "--request-timeout-secs=600",
    ]  # fmt: skip


def litellm(place: Place) -> list[str]:
    """Its proxy without a database: no keys but the master's, no budgets, nothing written."""
    key, config = "sk-" + secrets.token_hex(24), place.folder / "litellm.yaml"
    model = {"model": f"openai/{MODEL}", "api_base": f"{place.upstream}/v1", "api_key": "sk-upstream"}
    config.write_text(json.dumps({
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "litellm_settings": {"request_timeout": 600, "num_retries": 0, "turn_off_message_logging": True},
        "general_settings": {"master_key": key, "disable_spend_logs": True, "disable_error_logs": True},
    }))  # fmt: skip
    place.headers["authorization"] = f"Bearer {key}"
    place.environment |= {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program = [str(VENV / "bin" / "litellm"), "--host=127.0.0.1", f"--port={place.port}", "--num_workers=1"]
    return [*program, f"--config={config}", "--telemetry=False"]


RECIPES = (
    Recipe("direct", None),
    Recipe("aiohttp pass-through", passthrough()),
    Recipe("aiohttp, barest", passthrough("barest"), holds=False),
    Recipe("holdfast", holdfast()),
    Recipe("holdfast, no limits", holdfast(key=()), holds=False, named=True),
    Recipe("holdfast, four levels", four_levels(), holds=False, named=True),
    Recipe("holdfast, four levels on Redis", four_levels(redis=True), holds=False, named=True),
    Recipe("holdfast, policies off", holdfast(admission={"on": False}, routing=NOWHERE), holds=False, named=True),
    Recipe("holdfast, promises", holdfast(tiers=[PROMISING]), holds=False, named=True),
    Recipe("vllm-router", vllm_router, needs="vllm-router"),
    Recipe("litellm", litellm, share=0.1, rounds=2, holds=False, needs="litellm"),
)
