"""Real Redis servers for stores, by the plugin's tests alone: those of the gateway know what is not installed here."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import redis

START_S_MAX = 15.0
UNPACKED = Path(__file__).parents[3] / ".cache" / "redis" / "redis-server"  # scripts/install.py may have put it there


class Redis:
    """One server, a process of its own on a free port of 127.0.0.1. options: as on its command line."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._command = [program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory), 
            "--save", "", "--logfile", str(directory / "redis.log"), *options,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, empty; wait until it answers."""
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)
        until_s = time.monotonic() + START_S_MAX
        while True:
            try:
                self.ask("PING")
                return
            except redis.RedisError:
                assert self.process.poll() is None, "redis-server ended"
                assert time.monotonic() < until_s, "redis-server does not answer"
                time.sleep(0.02)

    def ask(self, *words: Any) -> Any:
        """One command."""
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """By SIGKILL, however it is. May be called again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It accepts connections, and says nothing."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        """After `stopped`."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Liar:
    """A server that gives each command the same answer."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """No more of them."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._lie, args=(connection,), daemon=True).start()

    def _lie(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as asked:
            while line := asked.readline():
                for _ in range(int(line[1:])):
                    asked.read(int(asked.readline()[1:]) + 2)
                connection.sendall(self._answer)


def program() -> str:
    """redis-server. AssertionError where it is missing: no test passes for that."""
    found = str(UNPACKED) if UNPACKED.exists() else shutil.which("redis-server")
    assert found, "redis-server is missing: python3 scripts/install.py redis, or apt-get install redis-server"
    return found


def free_port() -> int:
    """Of 127.0.0.1; somebody else may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def made_key(file: Path) -> Path:
    """A key of its own."""
    file.write_text(secrets.token_hex(32))
    os.chmod(file, 0o600)
    return file


def address_of(servers: Sequence[Redis], key_file: Path, *, copies: int = 1, size: str = "16MiB") -> str:
    """Of a store on these."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"redis://{hosts}/0?copies={copies}&size={size}&key_file={key_file}"
