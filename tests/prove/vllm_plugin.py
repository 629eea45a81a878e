"""Programs of vLLM's environment, which has nothing of this one: started, told on, and ended in time."""

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.local.engine import vllm_python
from tests.prove.state import ROOT, STATE, say

ROOM = "tests.vllm_plugin.real"
RESULT = "RESULT "  # begins a line that is an answer
STARTS_S_MAX = 180.0


def measured(module: str, *arguments: str, limit_s: float) -> dict[str, Any]:
    """Run a program that writes its JSON to a file, and say how far it is.

    Raises RuntimeError with where its log is, if it fails or is not done in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        log = _log(module)
        with log.open("w") as kept:
            process = _started(module, [str(out), *arguments], stdout=kept, stderr=subprocess.PIPE)
            telling = threading.Thread(target=_tell, args=(process, kept), daemon=True)
            telling.start()
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{module} was not done after {limit_s:.0f} s: see {log}") from None
            finally:
                process.kill()
                process.wait()
                telling.join()
        if process.returncode or not out.exists():
            raise RuntimeError(f"{module} ended with {process.returncode}: see {log}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


class Worker:
    """A program that is given a line and answers with one."""

    def __init__(self, module: str, name: str, *arguments: str) -> None:
        self._log = _log(f"{module}-{name}")
        self._kept = self._log.open("w")
        self._process = _started(
            module, list(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._kept
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, limit_s: float, **said: Any) -> dict[str, Any]:
        """Raises RuntimeError where no answer comes in time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        return self.answer(limit_s)

    def answer(self, limit_s: float = STARTS_S_MAX) -> dict[str, Any]:
        """The next one."""
        try:
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise RuntimeError(f"no answer within {limit_s:.0f} s: see {self._log}") from None
        if not line:
            raise RuntimeError(f"ended without an answer: see {self._log}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _read(self) -> None:
        """Lines that are answers; in the end an empty one."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(RESULT):
                self._answers.put(line.removeprefix(RESULT))
        self._answers.put("")

    def end(self) -> None:
        """Now."""
        self._process.kill()
        self._process.wait()
        self._kept.close()


@contextmanager
def workers(module: str, arguments: dict[str, list[str]]) -> Iterator[dict[str, Worker]]:
    """Some, by name; started one after the other."""
    started: dict[str, Worker] = {}
    try:
        for name, said in arguments.items():
            started[name] = Worker(module, name, *said)
            started[name].answer()
            say(f"{module}: «{name}» is ready")
        yield started
    finally:
        for worker in started.values():
            worker.end()


def _started(module: str, arguments: list[str], **pipes: Any) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    program = module if module.startswith("tests.") else f"{ROOM}.{module}"
    command = [str(vllm_python()), "-m", program, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, bufsize=1, **pipes)


def _tell(process: "subprocess.Popen[str]", kept: Any) -> None:
    """Lines of progress are said, and the rest is kept."""
    assert process.stderr is not None
    for line in process.stderr:
        kept.write(line)
        if " of " in line and line[:1].islower() and len(line) < 80:
            say(line.strip())


def _log(name: str) -> Path:
    folder = STATE / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"
