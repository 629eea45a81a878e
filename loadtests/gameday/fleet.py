"""Fleet: two real vLLM servers with the plugin on one page store, started once and mended between scenarios."""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model, vllm_python
from gateway.local.plugged import linked, plugin_arguments
from loadtests.gameday import page_hand, poison

SERVERS = 2
SIZE = "small"  # slower than the path that its tokens take, as models on GPUs are: a kill falls into the stream
BLOCK_TOKENS = 32  # of a page: the smallest that attention on the CPU takes
BLOCKS = 1024  # of each server's own cache
STEP_TOKENS = 512  # of prompts, in a step
STORE_BYTES = 512 << 20  # more than all scenarios write in a minute: pages of nobody's session make no room in it
SHARED = Path("/dev/shm")
ALL = {"scrub": "all"}  # of the plugin: each page that is held is looked at before a token leaves
PACKAGE = Path(__file__).resolve().parents[1]  # loadtests, for the hands below
# Only servers that are started here have these: see page_hand.py and poison.py.
HANDS = ("--worker-extension-cls", page_hand.EXTENSION, "--middleware", poison.MIDDLEWARE)
LOOK_S_MAX = 5.0
SOCKET_PATH_MAX, SOCKET_NAME = 107, 37  # characters: of the kernel's sockets, and of what vLLM calls its own, with a /
COMPILED = "TORCHINDUCTOR_CACHE_DIR"


class Fleet:
    """`engines`, once `ready` was called; whatever is started here is gone after `close`.

    folder: for logs. scratch: for what is thrown away. arguments, environment: more for vLLM.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        say: Callable[[str], None],
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        packages: Sequence[Path] = (),
    ) -> None:
        self.engines: list[Engine] = []
        self.folder, self._scratch, self._say = folder, scratch, say
        self._more, self._environment, self._packages = arguments, dict(environment or {}), packages
        self.secret = secrets.token_hex()  # of whoever may damage pages, or mark a request as poison
        self._store = (SHARED if os.access(SHARED, os.W_OK) else scratch) / f"holdfast-gameday-{os.getpid()}"

    @staticmethod
    def lacking() -> str:
        """Why there can be no such fleet here; empty where there can."""
        try:
            vllm_python()
        except RuntimeError as missing:
            return str(missing)
        return ""

    @property
    def model(self) -> Path:
        """The directory of the model, which is served as «tiny»."""
        return tiny_model(size=SIZE)

    @property
    def tokenizer(self) -> Path:
        """The model's tokenizer.json."""
        return self.model / "tokenizer.json"

    @property
    def store(self) -> str:
        """The address of the servers' page store."""
        return f"lmdb://{self._store}?size={STORE_BYTES}"

    @property
    def urls(self) -> list[str]:
        """Root URLs of the servers."""
        return [engine.url for engine in self.engines]

    def at(self, address: str | None) -> Engine:
        """The server of that address (host:port), as the gateway names it. Raises LookupError."""
        for engine in self.engines:
            if engine.address == address:
                return engine
        raise LookupError(f"no server of ours is at {address}")

    def ready(self) -> None:
        """Start the servers; later, start those again that died or do not answer. Comes back when all are warm."""
        if not self.engines:
            self._start()
            return
        broken = [engine for engine in self.engines if not self._well(engine)]
        for engine in broken:
            self._say(f"{engine.label} is started again")
            engine.kill(signal.SIGKILL)
            engine.stop()
            engine.start()
        for engine in broken:
            engine.wait_ready(on_progress=self._say)

    def servers(self, count: int, name: str, arguments: Sequence[str] = (), **options: Any) -> list[Engine]:
        """Further servers of the same kind, warm, with the same plugin and store; the caller ends them (`stop_fleet`).

        name: of their logs. options: as for Engine; `environment` is added to what the plugin needs.
        """
        options["environment"] = self._variables() | dict(options.get("environment") or {})
        return start_fleet(
            count, options.pop("model", self.model), logs=self.folder / name, on_progress=self._say,
            arguments=[*self._said(), *arguments], **options,
        )  # fmt: skip

    def close(self) -> None:
        """End the servers, and remove their store. May be called again."""
        for engine in self.engines:
            engine.kill(signal.SIGCONT)
        try:
            stop_fleet(self.engines)
        finally:
            self.engines = []
            shutil.rmtree(self._store, ignore_errors=True)

    def _start(self) -> None:
        installed = self._scratch / "installed"
        if not installed.exists():
            linked(installed, *{PACKAGE, *self._packages})
            file = self._secret_file
            file.touch(0o600)
            file.write_text(self.secret)
        self.engines = start_fleet(
            SERVERS, self.model, logs=self.folder, on_progress=self._say, arguments=self._said(),
            environment=self._variables(),
        )  # fmt: skip

    def _said(self) -> list[str]:
        return [
            *plugin_arguments(self.store, BLOCK_TOKENS, ALL), *HANDS, "--max-num-batched-tokens", str(STEP_TOKENS),
            "--num-gpu-blocks-override", str(BLOCKS), *self._more,
        ]  # fmt: skip

    def _variables(self) -> dict[str, str]:
        path = str(self._scratch / "installed")
        return {
            "PYTHONPATH": path, "VLLM_PLUGINS": "holdfast", "VLLM_SERVER_DEV_MODE": "1",
            page_hand.SECRET_FILE: str(self._secret_file),
        } | self._temporary() | self._environment  # fmt: skip

    def _temporary(self) -> dict[str, str]:
        """Where vLLM puts sockets and files that whoever is killed leaves: they go with all that is thrown away.

        What torch compiles stays where all of its programs look for it: made anew it takes longer than a scenario.
        """
        folder = self._scratch / "vllm"
        if len(str(folder)) + SOCKET_NAME > SOCKET_PATH_MAX:
            return {}
        folder.mkdir(exist_ok=True)
        compiled = os.environ.get(COMPILED) or f"{tempfile.gettempdir()}/torchinductor_{_user()}"
        return {"TMPDIR": str(folder), "VLLM_RPC_BASE_PATH": str(folder), COMPILED: compiled}

    @property
    def _secret_file(self) -> Path:
        return self._scratch / "secret"

    def _well(self, engine: Engine) -> bool:
        """Whether it lives, and computes: /health alone stays 200 over an engine that hangs."""
        engine.kill(signal.SIGCONT)
        if not engine.alive:
            return False
        body = {"model": engine.served_name, "prompt": [100, 101], "max_tokens": 1}
        request = urllib.request.Request(
            engine.url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=LOOK_S_MAX) as response:
            return bool(response.status == 200)
        return False


def _user() -> str:
    """As torch calls whoever runs it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of containers: a number that has no name
        return str(os.getuid())
