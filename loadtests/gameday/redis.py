"""A Redis server of one's own, on a leash: its files are in a folder that is thrown away."""

import os
import shutil
import signal
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.local.engine import REPOSITORY
from gateway.local.leashed import Leashed
from gateway.local.ports import free_ports
from loadtests.gateway_process import until

START_S_MAX = 20.0
GIVEN = "HOLDFAST_REDIS_SERVER"  # a path, where it is neither installed nor unpacked


def redis_server() -> str | None:
    """The program: what is named, installed, or unpacked by scripts/install.py; None where there is none."""
    unpacked = [str(root / ".cache" / "redis" / "redis-server") for root in (REPOSITORY, Path.cwd())]
    found = (
        shutil.which(name) for name in (os.environ.get(GIVEN, ""), "redis-server", "valkey-server", *unpacked) if name
    )
    return next((path for path in found if path), None)


class Redis:
    """One server, which keeps what it is told in an append-only file, each write flushed before it answers."""

    def __init__(self, folder: Path) -> None:
        program = redis_server()
        assert program is not None, "there is no redis-server"
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_ports(1)[0]
        command = [
            program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
            "--appendonly", "yes", "--appendfsync", "always",
        ]  # fmt: skip
        self._process = Leashed("Redis", command, log=folder / "redis.log", environment=os.environ)

    @property
    def url(self) -> str:
        """As in holdfast.yaml."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def start(self) -> None:
        """With the files that are there; comes back once it answers."""
        self._process.start()
        until(self._answers, START_S_MAX, "Redis")

    def kill(self) -> None:
        """By SIGKILL; its port is closed then."""
        self._process.kill(signal.SIGKILL)
        self._process.stop()

    def _answers(self) -> bool:
        if not self._process.alive:
            raise self._process.failure("died while starting")
        try:
            with redis.Redis(port=self.port, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
