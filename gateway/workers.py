"""The parent of the workers on one machine: it starts them, starts anew those that die, and ends when all have ended.

It serves nothing and keeps no books. Each worker is a gateway of its own, which shares the port (SO_REUSEPORT: the
kernel gives each its part of the connections), the keys and the vault of the budgets with the others. They are forked,
from a process that has no threads.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass

import structlog

from gateway.app import run
from gateway.books.directories import directories, directory
from gateway.books.keys import Keys
from gateway.books.ledger.tables import LedgerInUse, ledger_file, lock
from gateway.books.vault.engines import open_vault
from gateway.config import Config
from gateway.ledgers import LOCK_S, open_books
from gateway.salt import Salts
from gateway.stream.text import TokenizerInvalid
from gateway.worker import Worker
from guards.refusal import Refused

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
AGAIN_S_FIRST, AGAIN_S_MAX = 0.1, 5.0  # before a worker that died is started anew; doubled while it does not last
LASTS_S = 10.0  # one that lived for so long died by chance
WAIT_S_MAX = 1e9
ALONE_S_MAX = 0.5  # that threads which have ended may take to be gone
FAILS_S = 5.0  # one that ends by itself so soon after the first start of all cannot be started


def serve(config: Config) -> int:
    """Serve until SIGINT or SIGTERM; the exit status, the worst of all workers'.

    Raises OSError, LedgerInUse, Refused where the workers cannot begin.
    """
    asyncio.run(prepare(config))
    descriptor = lock(config.data, LOCK_S)  # so that no gateway alone begins here
    try:
        with closing(_port(config)) as place:
            listen = config.listen.model_copy(update={"port": place.getsockname()[1]})
            return Parent(config.model_copy(update={"listen": listen}), (descriptor, place.fileno())).run()
    finally:
        os.close(descriptor)


async def prepare(config: Config) -> None:
    """Make what workers share, and have the vault hear of all that was spent here by those who do not run any more.

    These are the gateway that was alone on this directory, and workers of a time when there were more.
    """
    new = not directories(config.data)
    Salts(config.data)
    keys, vault = Keys(config.data / "keys.db", config.keys, budgets=config.budgets), open_vault(config)
    try:
        if new and config.ledger.url is None:
            try:
                await vault.begin()
            except ValueError:
                log.warning("workers.vault_found", data=str(config.data))
        mine = {directory(config.data, number) for number in range(config.workers)}
        gone = [path for path in directories(config.data) if path not in mine]
        kind = config.ledger.model_copy(update={"one_off": False})  # there may be more workers again
        for path in ([config.data] if ledger_file(config.data).exists() else []) + gone:
            async with open_books(path, keys, kind, vault):
                log.info("workers.told", data=str(path))
        for path in sorted(mine):
            path.mkdir(mode=0o700, exist_ok=True)
    finally:
        keys.close()
        await vault.close()


def _port(config: Config) -> socket.socket:
    """Have the port, for the workers to listen on; nobody connects to this socket. Raises OSError."""
    host, port = config.listen.host, config.listen.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as alone:  # who listens there and would share it with us is not one of ours
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
        port = alone.getsockname()[1]
    place = socket.socket(family)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    place.bind((host, port))
    return place


@dataclass
class Seat:
    """One worker, from start to start. pid: 0 while it does not run; again_s: how long the next start waits."""

    worker: Worker
    pid: int = 0
    began_s: float = 0.0
    starts_at: float = 0.0
    again_s: float = AGAIN_S_FIRST


class Parent:
    """Keeps the workers running. mine: descriptors that they must not keep open."""

    def __init__(self, config: Config, mine: tuple[int, ...] = ()) -> None:
        self._seats = [Seat(Worker(number, config.workers, config)) for number in range(config.workers)]
        self._mine = mine
        self._began_s = time.monotonic()
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        """Until all have ended; the worst of their statuses."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        alone()
        while self._start() or any(seat.pid for seat in self._seats):
            waits = [seat.starts_at for seat in self._seats if not (seat.pid or self._stopping)]
            heard = signal.sigtimedwait(SIGNALS, max(0.0, min(waits, default=WAIT_S_MAX) - time.monotonic()))
            if heard is not None and heard.si_signo != signal.SIGCHLD:
                self._stop()
            self._bury()
        return self._status

    def _start(self) -> bool:
        """Start those whose time it is; whether any is to run."""
        now_s = time.monotonic()
        for seat in self._seats:
            if not (self._stopping or seat.pid) and now_s >= seat.starts_at:
                seat.pid, seat.began_s = self._fork(seat.worker), now_s
        return not self._stopping

    def _stop(self) -> None:
        """Tell all to come to an end; told twice, to hurry."""
        self._stopping = True
        for seat in self._seats:
            if seat.pid:
                os.kill(seat.pid, signal.SIGTERM)

    def _bury(self) -> None:
        """See who has ended."""
        for seat in self._seats:
            pid, status = os.waitpid(seat.pid, os.WNOHANG) if seat.pid else (0, 0)
            if pid:
                seat.pid = 0
                self._ended(seat, os.waitstatus_to_exitcode(status))

    def _ended(self, seat: Seat, code: int) -> None:
        """Have it start anew, unless all are to end. code: below 0 the signal that killed it."""
        now_s, number = time.monotonic(), seat.worker.number
        if self._stopping or (code > 0 and now_s - self._began_s < FAILS_S):
            self._status = max(self._status, code if code >= 0 else 128 - code)
            if not self._stopping:
                log.error("worker.cannot_start", worker=number, status=code)
                self._stop()
            return
        seat.again_s = AGAIN_S_FIRST if now_s - seat.began_s >= LASTS_S else min(2 * seat.again_s, AGAIN_S_MAX)
        seat.starts_at = now_s + seat.again_s
        log.error("worker.died", worker=number, status=code, again_s=seat.again_s)

    def _fork(self, worker: Worker) -> int:
        assert threading.active_count() == 1, "a fork would copy this thread alone, and the locks of the others"
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            for descriptor in self._mine:
                os.close(descriptor)
            status = work(worker, parent)
        finally:
            sys.stderr.flush()
            os._exit(status)


def alone() -> None:
    """Wait a moment for threads that have ended to be gone for the kernel, too.

    A signal goes to any thread that does not block it: one that Python has joined may live on for as long as it has no
    processor, and the signal would end this process, and nobody its workers.
    """
    deadline_s = time.monotonic() + ALONE_S_MAX
    with suppress(OSError):  # where there is no /proc
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline_s:
            time.sleep(0.001)


def pin(number: int) -> None:
    """Have this process stay on one of the cores that it may use; more processes than cores share them evenly.

    Its threads take turns with the interpreter's lock, and pass it on at less cost where they are on one core.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


def work(worker: Worker, parent: int) -> int:
    """Be a worker, until it is told to end; its exit status. It outlives its parent by the time that it drains.

    The parent's signals stay blocked until they are handled: one that comes before is not lost, and does not kill it.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return 0
    if worker.whole.workers_pinned:
        pin(worker.number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to the parent too, which says so
    try:
        run(worker.config, worker)
    except (LedgerInUse, TokenizerInvalid, Refused, OSError) as error:
        log.error("worker.failed", worker=worker.number, why=str(error))
        return 1
    except Exception as error:
        log.error("worker.fault", worker=worker.number, exc_info=error)
        return 1
    return 0
