"""The journal's file: numbered lines, whole after any crash and after any error of the disk."""

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
        self._path = path
        self._inode = (-1, -1)  # of the file that the next two are about: device and number
        self._bytes = self._seq = 0
        self._descriptor: int | None = None
        self._open()

    def write(self, facts: list[bytes]) -> None:
        """Append facts, each an encoded JSON object, and wait until they are on disk.

        Raises OSError; then none of them is in the file, and they may be written again.
        """
        descriptor = self._open() if self._descriptor is None else self._descriptor
        # Numbered here and not when noted, so that a lost fact leaves no hole: holes mean a damaged file.
        numbered = [b'{"seq":%d,%b\n' % (seq, fact[1:]) for seq, fact in enumerate(facts, self._seq + 1)]
        data = b"".join(numbered)
        try:
            if not os.fstat(descriptor).st_nlink:
                raise FileNotFoundError(f"{self._path} was removed")
            write_all(descriptor, data)
            os.fdatasync(descriptor)
        except OSError:
            # After a failed flush the kernel takes those pages for clean: flushing again would succeed and write
            # nothing. So what it covered is cut off, and written anew, by a descriptor that has seen no error.
            self.close()
            raise
        self._seq += len(facts)
        self._bytes += len(data)

    def close(self) -> None:
        """Let go of the file; a later write opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        """Open the file and cut off what is not known to be whole. Makes no directory: one that is gone stays gone."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            found = os.fstat(descriptor)
            inode, size, last = (found.st_dev, found.st_ino), self._bytes, self._seq
            if inode != self._inode or found.st_size < size:  # not the one that was open before
                size, last = whole_lines(descriptor)
            os.ftruncate(descriptor, size)
            sync_directory(self._path.parent)
        except OSError:
            os.close(descriptor)
            raise
        self._inode, self._bytes, self._seq = inode, size, max(self._seq, last)
        self._descriptor = descriptor
        return descriptor


def write_all(descriptor: int, data: bytes) -> None:
    """Write to the end of the data. Raises OSError."""
    while data:
        data = data[os.write(descriptor, data) :]


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
