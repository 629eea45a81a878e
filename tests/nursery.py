"""Commands of `holdfast`, forked from a process that has imported what they need, which takes a second each time.

`begin(arguments, out, err)` is in place of `Popen([holdfast, *arguments], stdout=out, stderr=err)`, and `run` of
`subprocess.run`, some hundred times in a run of all tests. What comes of it is a process of its own, with a session,
signals and an exit status of its own. What it shares with others is /proc/PID/cmdline, the order of sets, and what
Python made of the environment when it began. Each process that runs tests has one nursery, from its first use until it
ends itself. Proofs and tests with real vLLM execute their gateways.
"""

import atexit
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
ORDER_BYTES_MAX = 1 << 17  # an environment and some arguments
SAID_BYTES_MAX = 1 << 20  # of what a command says
END_S_MAX = 5.0
FILES_MAX = 256  # that a process has which only forks


class Nursery:
    """The process that forks, as others see it. Any thread may use it."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock, self._numbers = Lock(), itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
            cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        atexit.register(self._end)

    def ask(self, *files: int, **order: Any) -> Any:
        """Have something done, and say what came of it. Raises OSError where nobody does it any more."""
        with self._lock:
            order["number"] = number = next(self._numbers)
            socket.send_fds(self._line, [json.dumps(order).encode()], files)
            while said := self._line.recv(ORDER_BYTES_MAX):
                answer = json.loads(said)
                if answer["number"] == number:  # else whoever asked that was interrupted
                    return answer["is"]
        raise OSError("the nursery has ended")

    def _end(self) -> None:
        self._line.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S_MAX)
        self._process.kill()


class Child:
    """A command that was begun, with what of Popen a gateway's owner uses."""

    def __init__(self, nursery: Nursery, arguments: Sequence[str], out: IO[bytes], err: IO[bytes]) -> None:
        self.returncode: int | None = None
        self._ended = -1
        self._nursery, self._arguments = nursery, list(arguments)
        files = out.fileno(), err.fileno()
        self.pid: int = nursery.ask(*files, arguments=self._arguments, environment=dict(os.environ))
        self._lock, self._ended = Lock(), os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit status, below 0 after a signal; None while it runs."""
        return self._status(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended. Raises subprocess.TimeoutExpired."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0.0)
        return status

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and ended(self._ended, timeout):
            with self._lock:
                if self.returncode is None:  # no other thread has asked meanwhile
                    self.returncode = self._nursery.ask(ended=self.pid)
        return self.returncode

    def __del__(self) -> None:
        if self._ended >= 0:
            os.close(self._ended)

    def send_signal(self, number: int) -> None:
        """Nobody has its number before its end was asked for."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def ended(pidfd: int, timeout: float | None) -> bool:
    """Whether a process has ended, within so many seconds. Not by select(), which knows no number above 1023."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1e3))


_nursery: list[Nursery] = []
_first = Lock()


def begin(arguments: Sequence[str], out: IO[bytes], err: IO[bytes]) -> Child:
    """Run `holdfast` with these arguments, in a session of its own, and with nothing to read."""
    with _first:
        if not _nursery:
            _nursery.append(Nursery())
    return Child(_nursery[0], arguments, out, err)


def run(arguments: Sequence[str], timeout: float) -> str:
    """The same to its end, and its standard output. Raises subprocess.CalledProcessError, TimeoutExpired."""
    with TemporaryFile() as out, TemporaryFile() as err:
        child = begin(arguments, out, err)
        try:
            status = child.wait(timeout)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        said, of_errors = (os.pread(file.fileno(), SAID_BYTES_MAX, 0).decode() for file in (out, err))
    if status:
        raise subprocess.CalledProcessError(status, list(arguments), said, of_errors)
    return said


def serve(line: socket.socket) -> None:
    """Fork as it is told, until nobody is there any more; a child comes back from this to be what it was begun for.

    Before it ends itself it ends those of whose end nobody has asked: whoever began them was interrupted, or is gone.
    """
    running, ends = set[int](), dict[int, int]()
    while True:
        said, files, _, _ = socket.recv_fds(line, ORDER_BYTES_MAX, 2)
        if not said:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        order = json.loads(said)
        if "ended" in order:
            pid = order["ended"]
            if pid in running:  # else whoever asked before was interrupted
                ends[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                running.discard(pid)
            answer = ends[pid]
        else:
            begun, begins = os.pipe()
            if not (answer := os.fork()):
                os.setsid()  # before anybody knows of it, who may want to end its group
                line.close()
                return become(order["arguments"], order["environment"], *files)
            for file in (*files, begins):
                os.close(file)
            os.read(begun, 1)
            os.close(begun)
            running.add(answer)
        line.send(json.dumps({"number": order["number"], "is": answer}).encode())


def become(arguments: list[str], environment: dict[str, str], out: int, err: int) -> None:
    """Have this process be as if it had been executed."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, FILES_MAX)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["holdfast", *arguments]
    sys.modules["__main__"].__package__ = None  # else help says that it is called `python -m ...`


if __name__ == "__main__":
    import gateway.app
    import gateway.workers  # noqa: F401 -- imported here so that no child has to
    from gateway.cli import main

    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
