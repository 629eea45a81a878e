"""The journal's file: numbered lines, whole after any crash."""

import os
from pathlib import Path

import msgspec

FACT_BYTES_MAX = 16_384
FLUSH_FACTS_MAX = 256
TAIL_BYTES = 300 * FACT_BYTES_MAX  # searched for a torn end: more than one flush, for older ones were on disk


class JournalFile:
    """An append-only file of numbered lines; a batch of them is written whole or not at all.

    Raises OSError when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._bytes, self._seq = whole_lines(self._descriptor)
        self._torn = True
        self._cut()
        sync_directory(path.parent)

    def write(self, facts: list[bytes]) -> None:
        """Append facts, each an encoded JSON object, and wait until they are on disk. Raises OSError."""
        if self._torn:
            self._cut()
        # Numbered here and not when noted, so that a lost fact leaves no hole: holes mean a damaged file.
        numbered = [b'{"seq":%d,%b\n' % (seq, fact[1:]) for seq, fact in enumerate(facts, self._seq + 1)]
        data = b"".join(numbered)
        self._torn = True
        self._write_all(data)
        os.fdatasync(self._descriptor)
        self._torn = False
        self._seq += len(facts)
        self._bytes += len(data)

    def close(self) -> None:
        os.close(self._descriptor)

    def _cut(self) -> None:
        """Cut off what is not known to be whole."""
        os.ftruncate(self._descriptor, self._bytes)
        self._torn = False

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def whole_lines(descriptor: int) -> tuple[int, int]:
    """Find where the last whole fact ends, in bytes from the start, and its number; (0, 0) when there is none."""
    size = os.fstat(descriptor).st_size
    begin = max(0, size - TAIL_BYTES)
    tail = os.pread(descriptor, size - begin, begin)
    # A tail that begins within a line begins anew after it.
    end = tail.find(b"\n") + 1 if begin else 0
    seq = 0
    for line in tail[end:].splitlines(keepends=True):
        number = number_of(line)
        if number is None:
            break
        seq = number
        end += len(line)
    return begin + end, seq


def number_of(line: bytes) -> int | None:
    """Read a line's number; None when it is not a whole fact."""
    try:
        seq = msgspec.json.decode(line)["seq"] if line.endswith(b"\n") else None
    except (msgspec.DecodeError, TypeError, KeyError):
        return None
    return seq if isinstance(seq, int) else None


def sync_directory(path: Path) -> None:
    """Make a new file's name as durable as what is in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
