"""The store's directory: private, locked by whoever uses it, and looked at before LMDB is.

LMDB believes its file: a damaged one can end the process that opens it. So whoever comes first verifies it, byte by
byte and without LMDB, and puts it aside where it is damaged. Pages can be computed anew; an engine that does not
come up, or dies of a cache, cannot be made up for.

    data.mdb, lock.mdb   LMDB's
    holdfast.pages       says that this is a store, of which format and size; locked by all who use it
    damaged.mdb          the last damaged one, if there was room for it
"""

import fcntl
import logging
import os
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmdb.verify import VerifyError, verify

from vllm_plugin.store.contract import StoreRefused

log = logging.getLogger(__name__)

DATA, LOCK, MARK, ASIDE = "data.mdb", "lock.mdb", "holdfast.pages", "damaged.mdb"
MARK_WORDS = "Holdfast pages, format 1, size "
MARK_BYTES_MAX = 256
START_S_MAX = 60.0  # that another process may take to start
POLL_S = 0.02
PROBLEMS_SHOWN = 3


class Directory:
    """One process's use of a directory, from `begun` on until `close`.

    size_bytes: as its maker wanted it. aside: why an older store was put aside, else "".
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.aside = ""
        self._mark: int | None = None

    @property
    def data(self) -> Path:
        """LMDB's file."""
        return self.path / DATA

    @contextmanager
    def begun(self, *, make: bool) -> Iterator[bool]:
        """Begin to use it, one process after the other; gives whether no other one does. Raises StoreRefused."""
        _private_directory(self.path, make)
        with _alone_in(self.path):
            if not make and not (self.path / MARK).exists():
                raise StoreRefused(f"there are no pages in {self.path}")
            first = self._lock()
            try:
                if first:
                    self._look()
                else:
                    self._join()
                yield first
                fcntl.flock(self._locked, fcntl.LOCK_SH)
            except BaseException as error:
                self.close()
                if isinstance(error, OSError):
                    raise StoreRefused(f"{self.path}: {error.strerror}") from error
                raise

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody uses the store that is there, in any state; nobody begins meanwhile. Raises StoreRefused."""
        _private_directory(self.path, make=False)
        with _alone_in(self.path):
            if not (self.path / MARK).exists():
                raise StoreRefused(f"there are no pages in {self.path}")
            try:
                yield self._lock()
            finally:
                self.close()

    def preallocate(self) -> None:
        """Have the memory, all of it, now: later the lack of it would be a signal that ends the process."""
        with self.data.open("r+b") as data:
            if os.fstat(data.fileno()).st_blocks * 512 >= self.size_bytes:
                return
            try:
                os.posix_fallocate(data.fileno(), 0, self.size_bytes)
            except OSError as error:
                raise StoreRefused(_too_small(self.path, self.size_bytes, error)) from error

    def make_private(self) -> None:
        """LMDB's files are ours, whatever the umask."""
        for name in (DATA, LOCK):
            (self.path / name).chmod(0o600)

    def remove(self) -> None:
        """Remove the store's files, while nobody else uses them: within `begun`."""
        for name in (DATA, LOCK, ASIDE, MARK):
            (self.path / name).unlink(missing_ok=True)

    def put_aside(self, why: str) -> None:
        """Put a damaged store aside, or away where there is no room for both; tell."""
        kept = self._room_for_both()
        (self.path / LOCK).unlink(missing_ok=True)
        if kept:
            self.data.replace(self.path / ASIDE)
        else:
            self.data.unlink(missing_ok=True)
        self.aside = why
        where = f"put aside: rm {shlex.quote(str(self.path / ASIDE))}" if kept else "removed, for want of room"
        log.warning("pages: %s: %s; %s. Its pages will be computed anew", self.data, why, where)

    def close(self) -> None:
        """Let others be alone."""
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None

    @property
    def _locked(self) -> int:
        assert self._mark is not None, "within its use"
        return self._mark

    def _lock(self) -> bool:
        """Lock the mark: for this process alone if it can be, else as one of many."""
        for name in (DATA, LOCK, MARK, ASIDE):
            _private_file(self.path / name)
        if not (self.path / MARK).exists() and self.data.exists():
            raise StoreRefused(f"{self.data} was not made by Holdfast: use another directory")
        self._mark = os.open(self.path / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(self._mark, 0o600)  # a umask may have taken more
        try:
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._mark, fcntl.LOCK_SH)
            return False
        return True

    def _look(self) -> None:
        """As the only one: put aside what is damaged, and say whose the directory is from now on."""
        made = self.data.exists() and self.data.stat().st_size > 0
        size_bytes = self._marked()
        why = self._damage(size_bytes) if made else ""
        if why:
            self.put_aside(why)
        elif made and size_bytes is not None:
            if size_bytes != self.size_bytes:
                log.warning("pages: %s has %d MiB, as it was made", self.data, size_bytes >> 20)
            self.size_bytes = size_bytes
            return
        os.ftruncate(self._locked, 0)
        os.pwrite(self._locked, f"{MARK_WORDS}{self.size_bytes}\n".encode(), 0)

    def _join(self) -> None:
        """As one of many: nothing can be put aside under the others."""
        size_bytes = self._marked()
        if size_bytes is None or not self.data.exists() or self.data.stat().st_size != size_bytes:
            what = f"{self.path} is damaged, or of another version, and other processes use it"
            raise StoreRefused(f"{what}: stop them, and start again. They are: fuser {shlex.quote(str(self.data))}")
        self.size_bytes = size_bytes

    def _marked(self) -> int | None:
        """The size that the mark tells; None where it does not."""
        text = os.pread(self._locked, MARK_BYTES_MAX, 0).decode("ascii", "replace").strip()
        number = text.removeprefix(MARK_WORDS)
        return int(number) if text.startswith(MARK_WORDS) and number.isascii() and number.isdigit() else None

    def _damage(self, size_bytes: int | None) -> str:
        """What is wrong with LMDB's file, "" if nothing is."""
        found_bytes = self.data.stat().st_size
        if size_bytes is None:
            return f"{MARK} is damaged, or of another version of Holdfast"
        if found_bytes != size_bytes:
            return f"it has {found_bytes} bytes, and should have {size_bytes}"
        try:
            problems: list[str] = verify(self.data, subdir=False)  # type: ignore[no-untyped-call]
        except (VerifyError, OSError) as error:
            problems = [str(error)]
        return "; ".join(problems[:PROBLEMS_SHOWN])

    def _room_for_both(self) -> bool:
        """Whether the new one fits beside the damaged one, and that can be kept at all."""
        if not self.data.exists():
            return False
        (self.path / ASIDE).unlink(missing_ok=True)
        return _free_bytes(self.path) >= self.size_bytes


def _private_directory(path: Path, make: bool) -> None:
    """It is ours and only ours, whatever the umask; made where it is to be. Raises StoreRefused."""
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir(0o700)
                path.chmod(0o700)
            except FileExistsError:
                pass
        status = path.lstat()
    except FileNotFoundError:
        raise StoreRefused(f"there are no pages in {path}") from None
    except OSError as error:
        raise StoreRefused(f"{path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise StoreRefused(f"{path} is no directory, or a link: pages are kept in a directory of their own")
    _private(path, status, 0o700)


def _private_file(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise StoreRefused(f"{path} is no file: use another directory")
    _private(path, status, 0o600)


def _private(path: Path, status: os.stat_result, mode: int) -> None:
    """Pages reveal prompts: nobody else may read them, nor have been able to write them."""
    name = shlex.quote(str(path))
    if status.st_uid != os.geteuid():
        raise StoreRefused(f"{path} belongs to user {status.st_uid}, and pages reveal prompts. Run: rm -r {name}")
    if stat.S_IMODE(status.st_mode) & ~mode:
        raise StoreRefused(f"{path} can be used by others, and pages reveal prompts. Run: chmod {mode:o} {name}")


@contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    """One process at a time begins, or removes. Raises StoreRefused after START_S_MAX."""
    here = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline_s = time.monotonic() + START_S_MAX
        while True:
            try:
                fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise StoreRefused(f"another process has been starting in {path} for {START_S_MAX:.0f} s") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(here)


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _too_small(path: Path, size_bytes: int, error: OSError) -> str:
    free = _free_bytes(path) >> 20
    return (
        f"{path}: {size_bytes >> 20} MiB for pages are not to be had ({error.strerror}), {free} MiB are free. Ask for "
        f"less (?size={max(8, free // 2)}MiB), or have more: mount -o remount,size=… /dev/shm; docker run --shm-size=…"
    )
