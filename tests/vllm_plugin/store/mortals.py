"""Engines' plugins that use a store until they are killed, forked from one process that has compiled everything.

A real engine takes half a minute to start; what touches a store is its plugin, and that is what these are: paged
memory, an exchange, a store of their own. Whoever forks them opens no store.
"""

import contextlib
import ctypes
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np

from tests.vllm_plugin.store.paged import MODEL, TOKENS, Paged
from vllm_plugin.digest import Pages, Part
from vllm_plugin.page import Kind, Page
from vllm_plugin.store import Quarantine, StoreBusy, open_store

PAGE_BYTES, BLOCKS, CHAINS, SESSIONS = 16 * 1024, 16, 600, 40
PR_SET_PDEATHSIG = 1
TRIES = 20
BEAT, WRONG = b".", b"!"


class Mortal:
    """One of them. act: what it does with the file it tells on."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self._told, tells = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._told)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            try:
                act(tells)
                os._exit(0)
            except BaseException as error:
                os.write(tells, f"{WRONG.decode()}{type(error).__name__}: {error}".encode())
            finally:
                os._exit(1)
        os.close(tells)
        self.said, self._ended = b"", False

    def hears(self, within_s: float) -> bool:
        """Whether it says anything within so long, or has ended."""
        if not select.select([self._told], [], [], within_s)[0]:
            return False
        heard = os.read(self._told, 65536)
        self.said += heard
        self._ended |= not heard
        return True

    def dies_not(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return not self._ended

    def goes_on(self, within_s: float) -> bool:
        """Whether it says something that it had not said before."""
        while self.hears(0) and self.dies_not():
            pass
        return self.hears(within_s) and self.dies_not()

    @property
    def wrong(self) -> str:
        """What it found wrong, or died of; empty, if nothing."""
        return self.said.partition(WRONG)[2].decode()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stop(self) -> None:
        """No thread of it runs any more, or it has ended."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def bury(self) -> int:
        """Wait for its end; by what signal it was."""
        status = os.waitpid(self.pid, 0)[1]
        while last := os.read(self._told, 65536):
            self.said += last
        os.close(self._told)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def the(number: int, block: int = 0) -> Page:
    return Page(block, 1, 0, b"chain %d" % number, TOKENS * (number % 50))


def content(chain: bytes, version: bytes) -> bytes:
    """What a page of that chain holds, of 8 bytes that say which version: so that anybody can tell another one."""
    return version + (blake2b(chain + version).digest() * (PAGE_BYTES // 64))[8:]


def is_right(page: bytes, chain: bytes) -> bool:
    return page == content(chain, page[:8])


def fill(world: Paged, pages: list[Page]) -> None:
    """Versions that never were before: whoever was slow to find one wrong means no other."""
    for page in pages:
        world.layers[0][page.block] = np.frombuffer(content(page.chain, os.urandom(8)), np.uint32)


def memory() -> np.ndarray:
    return np.zeros((BLOCKS, PAGE_BYTES // 4), np.uint32)


def warm() -> None:
    """Compile what all of them need."""
    pages = Pages([Part.of(memory(), "block ...")])
    pages.write([0], [pages.bytes(1)])
    pages.warm()


def engine(url: str, seed: int, tells: int, deadly: int | None = None) -> None:
    """Uses a store for ever. deadly: it kills itself at so many-th of what it asks of LMDB while it writes."""
    store = open_store(url, populate=False)
    if deadly is not None:
        _kill_at(store, deadly)
    watched = Watched(store)
    world = Paged(watched, [memory()], "block ...")  # type: ignore[arg-type]
    rng = random.Random(seed)
    while True:
        _act(world, watched, rng)
        os.write(tells, WRONG + watched.wrong.encode() if watched.wrong else BEAT)


class Watched:
    """A store, of which whoever loads wants to know whether it served what is wrong: that would be REMOVED then."""

    def __init__(self, store: Any) -> None:
        self._store, self.wrong = store, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def quarantine(self, key: bytes, digest: bytes) -> Quarantine:
        found = self._store.quarantine(key, digest)
        if found is Quarantine.REMOVED:
            self.wrong = f"served {key!r}, which was wrong"
        return found


def _act(world: Paged, watched: Watched, rng: random.Random) -> None:
    numbers = rng.sample(range(CHAINS), rng.randint(1, BLOCKS))
    world.session = f"session {rng.randrange(SESSIONS)}"
    pages = [the(number, block) for block, number in enumerate(numbers)]
    act = rng.random()
    if act < 0.55:
        fill(world, pages)
        copies = world.copies(pages)
        watched.put(copies) if act < 0.3 else world.exchange.save(copies)
    elif act < 0.85:
        for page, _, kind in world.exchange.load(pages):
            if kind is None and not is_right(world.pages.bytes(page.block), page.chain):
                watched.wrong = f"{page.chain!r} is another page"
            assert kind in (None, Kind.ABSENT, Kind.CHANGED)
    elif act < 0.92:
        key, digest = world.copies(pages[:1])[0].key, b"?" * 16
        with watched.read([key]) as (found,):
            digest = found.manifest.digest if found else digest
        watched._store.quarantine(key, digest)  # as of a page that was computed from a bad one
    elif act < 0.96:
        world.exchange._swept_s -= 3600
        world.exchange.sweep(MODEL)
    else:
        with contextlib.suppress(StoreBusy):
            watched.erase(world.session)


def _kill_at(store: Any, number: int) -> None:
    left = number

    def tick() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    tables = store._tables
    writing, zero = tables.writing, tables._zero

    def zeroed(view: memoryview) -> None:
        tick()
        zero(view)

    tables.writing = lambda: Deadly(writing(), tick)
    tables._zero = zeroed


class Deadly:
    """A transaction, of which something happens before whatever is asked of it, its commit too."""

    def __init__(self, txn: Any, tick: Callable[[], None]) -> None:
        self._txn, self._tick = txn, tick

    def __getattr__(self, name: str) -> Any:
        self._tick()
        return getattr(self._txn, name)

    def __enter__(self) -> "Deadly":
        self._txn.__enter__()
        return self

    def __exit__(self, *what: Any) -> Any:
        self._tick()
        left = self._txn.__exit__(*what)
        self._tick()
        return left


def until(what: Callable[[], bool], why: str) -> None:
    """Tried for a while: a server that a busy machine keeps from answering is left out. Raises AssertionError."""
    for _ in range(TRIES):
        if what():
            return
        time.sleep(1.0)
    raise AssertionError(why)


def newcomer(url: str, tells: int, goes_on: int, check: Callable[[Any], dict[str, Any]]) -> None:
    """Opens a store that others use, and writes to it; when it is told to go on, looks at all of it; tells.

    Raises StoreRefused, AssertionError.
    """
    begun_s = time.monotonic()
    store: Any = open_store(url, populate=False)
    opened_s = time.monotonic() - begun_s
    world = Paged(store, [memory()], "block ...", session="newcomers")
    one = Page(0, 1, 0, b"of a newcomer %d" % os.getpid(), 0)
    fill(world, [one])
    copies = world.copies([one])
    until(lambda: store.put(copies), "it could not write")
    wrote_s = time.monotonic() - begun_s
    until(lambda: world.exchange.load([one])[0].kind is None, "what it wrote is not there")
    os.write(tells, BEAT)
    assert os.read(goes_on, 1), "nobody told it to go on"
    found = {"opened_s": opened_s, "wrote_s": wrote_s, **check(store)}
    os.write(tells, b"{" + json.dumps(found).encode() + b"}")
    os.read(goes_on, 1)  # others go on writing first
    store.close()


