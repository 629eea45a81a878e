"""The store's map as memory of this process: faulted in before it is needed, and overwritten where a page went."""

import contextlib
import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

MADV_POPULATE_WRITE = 23  # Linux 5.14: fault pages in as a write would, and change nothing
CHUNK_BYTES = 64 * 2**20
POPULATE_S_MAX = 120.0

_libc = ctypes.CDLL(None, use_errno=True)


class Map(NamedTuple):
    """Where a file is mapped into this process."""

    address: int
    length: int

    def offset(self, view: memoryview) -> int:
        """Where in the map is what a view shows. It must be a view of the map."""
        offset = address_of(view) - self.address
        assert 0 <= offset <= self.length - view.nbytes, "not of this map"
        return offset

    def zero(self, view: memoryview) -> None:
        """Overwrite what a view of the map shows, also where the view is only for reading."""
        ctypes.memset(self.address + self.offset(view), 0, view.nbytes)


def map_of(file: Path) -> Map | None:
    """Where this process maps a file; None where it does not. LMDB does not tell."""
    status = file.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, on, inode, *_ = line.split()
            if on == device and int(inode) == status.st_ino and "s" in line.split()[1]:
                begin, _, end = span.partition("-")
                if int(end, 16) - int(begin, 16) == status.st_size:
                    return Map(int(begin, 16), status.st_size)
    return None


class Populating:
    """Faults a map in, in a thread. done_bytes: how far it is. Bounded: it gives up after POPULATE_S_MAX.

    A first write to a page of memory that was never touched costs some ten times the copy. What it costs once, and
    in each process, is 0.3 s per GiB, and page tables: a 512th of the size.
    """

    def __init__(self, where: Map) -> None:
        self.done_bytes = 0
        self._where = where
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-populate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the chunk that is under way: after that the map may go."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        begun_s = time.monotonic()
        address, length = self._where
        while self.done_bytes < length and not self._end.is_set():
            if time.monotonic() - begun_s > POPULATE_S_MAX:
                return log.warning("pages: only %d MiB at hand after %.0f s", self.done_bytes >> 20, POPULATE_S_MAX)
            size = min(CHUNK_BYTES, length - self.done_bytes)
            if _libc.madvise(ctypes.c_void_p(address + self.done_bytes), ctypes.c_size_t(size), MADV_POPULATE_WRITE):
                reason = os.strerror(ctypes.get_errno())
                return log.warning("pages: not faulted in (%s): the first writes will be slower", reason)
            self.done_bytes += size
        log.info("pages: %d MiB at hand after %.1f s", self.done_bytes >> 20, time.monotonic() - begun_s)
        return None


class Lent:
    """Views of a map, for reading, of which one can tell whether anybody still has some of them.

    LMDB's own views do not tell: numpy looks through a view at what is behind it, whatever becomes of the view.
    """

    def __init__(self, where: Map, views: Sequence[memoryview]) -> None:
        owner = (ctypes.c_ubyte * where.length).from_address(where.address)
        self._owner = weakref.ref(owner)
        self._whole = memoryview(owner).cast("B").toreadonly()
        firsts = [where.offset(view) for view in views]
        self.views = [self._whole[at : at + view.nbytes] for at, view in zip(firsts, views, strict=True)]

    def take_back(self) -> bool:
        """Whether nobody has any of them any more."""
        for view in (*self.views, self._whole):
            with contextlib.suppress(BufferError):
                view.release()
        return self._owner() is None


class _Buffer(ctypes.Structure):
    """Python's Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(view: memoryview) -> int:
    """Where the memory of a view is. ctypes' own ways are for writable ones only."""
    buffer = _Buffer()
    told = ctypes.byref(buffer)
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), told, 0)
    address = int(buffer.buf)
    ctypes.pythonapi.PyBuffer_Release(told)
    return address
