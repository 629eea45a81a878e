"""Who is measured: Holdfast in its ways, pass-throughs, and what others run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from gateway.local.leashed import Leashed
from gateway.local.ports import free_ports
from loadtests.bench import others
from loadtests.bench.others import STREAMS_MAX
from loadtests.bench.peers import ROOT, Missing, Place, Recipe
from loadtests.bench.words import MODEL

BRIEFLY = ("plain", "paced")  # for what nobody runs
BUDGET = "1000000000000/day"
NOWHERE = {"sessions": False, "prefixes": False}  # what requests are near to
PROMISING = {
    "name": "default",
    "classes": [{"name": "all", "first_ms": 60_000, "between_ms": 1000, "total_ms": 600_000}],
}


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
        (admin_port,) = free_ports(1)  # and of workers those after it: so far from what connections are given
        listen = {"port": place.port, "admin_port": admin_port}
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
    (port,), folder = free_ports(1), place.folder / "redis"
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
    """A bare pass-through. how: `barest` for what nobody could leave anything out of; `twice`: two processes."""

    def command(place: Place) -> list[str]:
        place.environment["PYTHONPATH"] = str(ROOT)
        return [sys.executable, "-m", "loadtests.bench.passthrough", str(place.port), place.upstream, *how]

    return command


def relay(*how: str) -> Callable[[Place], list[str]]:
    """The least that Python can cost. how: `aiohttp` for its server on the clients' side."""

    def command(place: Place) -> list[str]:
        place.environment["PYTHONPATH"] = str(ROOT)
        return [sys.executable, "-m", "loadtests.bench.relay", str(place.port), place.upstream, *how]

    return command


RECIPES = (
    Recipe("direct", None, holds=0),
    Recipe("aiohttp pass-through", passthrough()),
    Recipe("aiohttp, barest", passthrough("barest"), holds=0, named=True),
    Recipe("relay", relay(), loads=BRIEFLY, holds=0),
    Recipe("relay behind aiohttp's server", relay("aiohttp"), loads=BRIEFLY, holds=0),
    Recipe("holdfast", holdfast(), holds=2),
    Recipe("holdfast, two workers", holdfast(workers=2), loads=("plain",), holds=0, everywhere=True),
    Recipe(
        "holdfast, two workers, pinned", holdfast(workers=2, workers_pinned=True),
        loads=("plain",), holds=0, everywhere=True,
    ),
    Recipe("holdfast, both cores", holdfast(), loads=("plain",), holds=0, everywhere=True, named=True),
    Recipe("holdfast, half the clients", holdfast(), share=0.5, loads=("plain",), holds=0, named=True),
    Recipe("aiohttp, two processes", passthrough("twice"), loads=("plain",), holds=0, everywhere=True, named=True),
    Recipe("holdfast, no limits", holdfast(key=()), holds=0, named=True),
    Recipe("holdfast, four levels", four_levels(), holds=0, named=True),
    Recipe("holdfast, four levels on Redis", four_levels(redis=True), holds=0, named=True),
    Recipe("holdfast, policies off", holdfast(admission={"on": False}, routing=NOWHERE), holds=0, named=True),
    Recipe("holdfast, promises", holdfast(tiers=[PROMISING]), holds=0, named=True),
    Recipe("nginx", others.nginx, slow=True, version=others.nginx_version),
    Recipe("vllm-router", others.vllm_router, slow=True, version=others.version_of("vllm-router")),
    Recipe("smg", others.smg, slow=True, version=others.version_of("smg")),
    Recipe("litellm", others.litellm, share=0.1, rounds=1, holds=0, slow=True, version=others.version_of("litellm")),
)
