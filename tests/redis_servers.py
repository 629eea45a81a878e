"""Real Redis servers that tests start, hurt and end; each a process of its own on a free port of 127.0.0.1."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.local.ports import free_ports
from tests.processes import until

START_S_MAX = 15.0
UNPACKED = Path(__file__).parents[1] / ".cache" / "redis" / "redis-server"  # scripts/install.py may have put it there


def redis_server() -> str:
    """The program. AssertionError where it is missing: no test passes for that."""
    found = str(UNPACKED) if UNPACKED.exists() else shutil.which("redis-server")
    assert found, "redis-server is missing: python3 scripts/install.py redis, or apt-get install redis-server"
    return found


class RedisServer:
    """One server. options: as on its command line, such as ("--appendonly", "yes"); directory: of its files."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_ports(1)[0]
        self.options = options
        self.log_file = directory / "redis.log"
        directory.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        """Start it, with the files that are there; wait until it answers."""
        # fmt: off
        command = [
            redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", "",
            "--logfile", str(self.log_file), "--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes",
            *self.options,
        ]
        # fmt: on
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        until(self._answers, START_S_MAX)

    def client(self, **options: Any) -> "redis.Redis":
        """A client of the tests' own."""
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), **{"socket_timeout": 5, **options})

    def ask(self, *words: Any) -> Any:
        """One command."""
        with self.client() as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """End it by SIGKILL: its port is closed, and what was not on disk is gone. May be called again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def restart(self, *, empty: bool = False) -> None:
        """Kill it and start it again; empty: without its files."""
        self.kill()
        if empty:
            shutil.rmtree(self.directory)
            self.directory.mkdir()
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It accepts connections, and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def follow(self, master: "RedisServer") -> None:
        """Become its replica, with all that it has."""
        self.ask("REPLICAOF", "127.0.0.1", master.port)
        until(lambda: self.info("replication").get("master_link_status") == "up")
        until(lambda: master.info("replication").get("slave0", {}).get("state") == "online")

    def promote(self) -> None:
        """Become a master."""
        self.ask("REPLICAOF", "NO", "ONE")

    def info(self, section: str) -> dict[str, Any]:
        with self.client() as client:
            return dict(client.info(section))

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"redis-server ended: {self.log_file.read_text(errors='replace')[-2000:]}"
        try:
            return bool(self.ask("PING"))
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


@contextmanager
def redis_cluster(directory: Path, *, replicas: bool = False) -> Iterator[list[RedisServer]]:
    """Three masters with a third of the slots each; replicas: and one of each after them, in the same order."""
    number = 6 if replicas else 3
    timeout_ms = "1000" if replicas else "5000"  # with nobody to follow a master, none is to be taken for dead
    servers: list[RedisServer] = []
    try:
        ports = free_ports(2 * number)  # the second half for the nodes' talk among themselves
        for at, (port, bus) in enumerate(zip(ports[:number], ports[number:], strict=True)):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", timeout_ms)
            servers.append(RedisServer(directory / str(at), *options, port=port))
        first, masters = servers[0], servers[:3]
        for server, (low, high) in zip(masters, ((0, 5460), (5461, 10_922), (10_923, 16_383)), strict=True):
            server.ask("CLUSTER", "ADDSLOTSRANGE", low, high)
        for at, server in enumerate(servers, 1):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", at)
        for server in servers[1:]:
            server.ask("CLUSTER", "MEET", "127.0.0.1", first.port, ports[number])
        until(lambda: all(known(server) == number for server in servers))
        for server, master in zip(servers[3:], masters, strict=False):
            name = master.ask("CLUSTER", "MYID")
            until(lambda server=server, name=name: replicating(server, name))
        until(lambda: all("cluster_state:ok" in words(server, "INFO") for server in servers), 30)
        yield servers
    finally:
        for server in servers:
            server.kill()


def replicating(server: RedisServer, master: Any) -> bool:
    """Whether a node could be made to follow a master: it has to have heard of it first."""
    try:
        server.ask("CLUSTER", "REPLICATE", master)
    except redis.RedisError:
        return False
    return until(lambda: server.info("replication").get("master_link_status") == "up")


def known(server: RedisServer) -> int:
    """How many nodes a node knows and is connected to."""
    return sum("handshake" not in line and " connected" in line for line in words(server, "NODES").splitlines())


def words(server: RedisServer, what: str) -> str:
    """What CLUSTER says, as text."""
    return str(server.ask("CLUSTER", what).decode())
