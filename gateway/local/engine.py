"""Engine: one real vLLM server on this machine. For the demo, the tests and game days; several: `start_fleet`."""

import contextlib
import http.client
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from gateway.local.leashed import LaunchFailed, Leashed, Process
from gateway.local.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_SCRIPT = Path(__file__).with_name("tiny_model.py")
CONTEXT_TOKENS = 4096
READY_S_MAX = 240.0  # on two cores shared by two starting engines, 20-60 s are usual
WARM_UP_S_MAX = 120.0  # the very first request can take 20 s
MODEL_S_MAX = 300.0  # 6 s are usual
METRICS_S_MAX = 10.0
POLL_S = 0.25

Progress = Callable[[str], None]
EngineFailed = LaunchFailed


class Engine(Leashed):
    """A vLLM server at `url`, from `start` to `stop`, in a process group of its own that never outlives this process.

    model: directory of the model.
    log: file that receives the server's output.
    port: 0 takes a free one.
    arguments: more arguments for vLLM, for example `["--block-size", "32"]`.
    environment: more environment variables; these win.
    command: run this instead of vLLM; `{port}` in an argument becomes the port. For tests.
    """

    def __init__(
        self,
        model: Path,
        *,
        log: Path,
        port: int = 0,
        served_name: str = "tiny",
        dtype: str = "float32",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        polite_s_max: float = 3.0,  # SIGTERM lets vLLM remove its shared memory
    ) -> None:
        self.port = port or free_ports(1)[0]
        self.served_name = served_name
        self._shared_memory: set[Path] = set()
        template = command if command is not None else [*vllm_command(model, served_name, dtype), *arguments]
        super().__init__(
            f"vLLM at {self.address}",
            [argument.replace("{port}", str(self.port)) for argument in template],
            log=log,
            environment=vllm_environment() | dict(environment or {}),
            polite_s_max=polite_s_max,
        )

    @property
    def address(self) -> str:
        """host:port, as in the gateway's `x-holdfast-replica`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The server's root, without /v1."""
        return f"http://{self.address}"

    @property
    def core_pid(self) -> int:
        """The process that computes tokens; killing it alone leaves the API server with an error to report."""
        for process in self.processes():
            if "EngineCore" in process.name:
                return process.pid
        raise ProcessLookupError(f"{self.label} has no EngineCore")

    def wait_ready(self, timeout_s: float = READY_S_MAX, on_progress: Progress | None = None) -> Self:
        """Return when the server answers and is warm.

        /health turns 200 before the engine is warm, so one short chat and one long prompt go through it here.
        Raises EngineFailed when the server dies, or is not healthy after timeout_s.
        """
        say = on_progress or (lambda _: None)
        started_s = time.monotonic()
        while not self.healthy():
            waited_s = time.monotonic() - started_s
            if not self.alive:
                raise self.failure("died while starting")
            if waited_s > timeout_s:
                raise self.failure(f"was not healthy after {timeout_s:.0f} s")
            say(f"{self.label}: starting")
            time.sleep(POLL_S)
        say(f"{self.label}: warming up")
        self._warm_up()
        self.note_shared_memory()
        say(f"{self.label}: ready after {time.monotonic() - started_s:.0f} s")
        return self

    def stop(self) -> None:
        """End the server, politely at first. Nothing of it is left afterwards; may be called again."""
        super().stop()
        for left_behind in self._shared_memory:  # by a server killed without warning
            left_behind.unlink(missing_ok=True)

    def note_shared_memory(self) -> None:
        """Remember which files in shared memory are its own: who is killed does not remove them, `stop` does."""
        self._shared_memory |= shared_memory(self.processes())

    def running(self) -> int:
        """How many requests the server computes now, as its own metrics say."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=METRICS_S_MAX) as response:
            lines = response.read().decode().splitlines()
        gauges = [line for line in lines if line.startswith("vllm:num_requests_running{")]
        return sum(int(float(line.rpartition(" ")[2])) for line in gauges)

    def healthy(self) -> bool:
        """Whether it says that it is well, which it may before it is warm."""
        try:
            return self._request("GET", "/health", None, timeout_s=2.0) == 200
        except (OSError, http.client.HTTPException):
            return False

    def _warm_up(self) -> None:
        common = {"model": self.served_name, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        chat = common | {"messages": [{"role": "user", "content": "warm up"}]}
        long = common | {"prompt": [100 + i % 400 for i in range(CONTEXT_TOKENS // 3)]}
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", long)):
            try:
                status = self._request("POST", path, body, WARM_UP_S_MAX)
            except (OSError, http.client.HTTPException) as error:
                raise self.failure(f"failed its warm-up ({error!r})") from error
            if status != 200:
                raise self.failure(f"answered its warm-up with {status}")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


def start_fleet(
    count: int,
    model: Path,
    *,
    logs: Path,
    on_progress: Progress | None = None,
    timeout_s: float = READY_S_MAX,
    **options: Any,
) -> list[Engine]:
    """Start `count` engines side by side and return them warm; when one fails, none is left.

    options: as for Engine.
    """
    engines = [Engine(model, log=logs / f"vllm-{number}.log", **options) for number in range(1, count + 1)]
    try:
        for engine in engines:
            engine.start()
        with ThreadPoolExecutor(max_workers=count) as waiting:
            ready = [waiting.submit(engine.wait_ready, timeout_s, on_progress) for engine in engines]
            try:
                for one in ready:
                    one.result()
            except BaseException:
                for engine in engines:
                    engine.note_shared_memory()
                    engine.kill()  # ends the waiting of the others, which this block would join
                raise
    except BaseException:
        stop_fleet(engines)
        raise
    return engines


def stop_fleet(engines: Sequence[Engine]) -> None:
    """Stop all at once: polite ends take seconds, side by side."""
    with ThreadPoolExecutor(max_workers=max(1, len(engines))) as stopping:
        list(stopping.map(lambda engine: engine.stop(), engines))


def tiny_model(dtype: str = "float32", size: str = "tiny", seed: int = 0) -> Path:
    """The directory of a random model, «tiny» for tests or «small» for people; built at first use (a few seconds).

    seed: of its weights; all else is alike.
    """
    root = REPOSITORY if (REPOSITORY / "pyproject.toml").exists() else Path.cwd()
    directory = root / ".cache" / (f"{size}-model-{dtype}" + (f"-seed-{seed}" if seed else ""))
    command = [str(vllm_python()), str(MODEL_SCRIPT), str(directory), "--dtype", dtype, "--size", size]
    command += ["--seed", str(seed)]
    if not (directory / "complete").exists():
        done = subprocess.run(
            command, env=vllm_environment(), capture_output=True, text=True, timeout=MODEL_S_MAX, check=False
        )
        if done.returncode != 0:
            raise EngineFailed(f"The tiny model could not be built:\n{done.stderr[-2000:]}")
    return directory


def vllm_command(model: Path, served_name: str, dtype: str) -> list[str]:
    """How a server is started; `{port}` stands for its port."""
    # `vllm serve` does not work with the CPU distribution: it looks for package metadata called `vllm`.
    # Without --dtype, float32 models are computed in bfloat16.
    return [
        *(str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", served_name),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--dtype", dtype, "--max-model-len", str(CONTEXT_TOKENS), "--enforce-eager"),
    ]


def vllm_python() -> Path:
    """The Python of the vLLM environment: HOLDFAST_VLLM_PYTHON, or `.venv-vllm` of the repository or here."""
    if given := os.environ.get("HOLDFAST_VLLM_PYTHON"):
        candidates = [Path(given)]
    else:
        candidates = [root / ".venv-vllm" / "bin" / "python" for root in (REPOSITORY, Path.cwd())]
    for candidate in candidates:
        if candidate.exists():
            return candidate.absolute()
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise EngineFailed(f"No vLLM environment (tried {tried}). Run `make install`, or set HOLDFAST_VLLM_PYTHON.")


def vllm_environment() -> dict[str, str]:
    """The environment of a small offline vLLM on the CPU, without the gateway's own Python settings."""
    # Without compiled files each of an engine's three processes compiles all of vLLM anew: five seconds apiece.
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        # Left alone, vLLM pins every engine's threads to the same core, and binds memory, which containers forbid.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def shared_memory(processes: Sequence[Process]) -> set[Path]:
    """The files in shared memory that these processes have mapped, by inode: semaphores are mapped before named."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if " /dev/shm/" in line:  # address permissions offset device inode path
                    inodes.add(int(line.split()[4]))
    files = [path for pattern in ("psm_*", "sem.mp-*") for path in Path("/dev/shm").glob(pattern)]
    return {path for path in files if path.stat().st_ino in inodes}
