"""What every page store promises, and its values."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

DIGEST_BYTES = 16  # as of vllm_plugin.digest, which is not imported: it needs what only vLLM's environment has
KEY_BYTES_MAX = 255
READ_S_MAX = 10.0  # a read that is open for longer is ended by the store: see `PageStore.read`
WAIT_S = 5.0  # for a write to be done, by default
QUARANTINE_S = 0.25
GENERATION_MAX = 2**53 - 1
FENCE_S = 86_400.0  # that a store knows to which generation a session came, at least, after it last moved


class StoreRefused(Exception):
    """This store cannot be used as it is; says why, and the line to run."""


class StoreBusy(Exception):
    """Something was not done in time, because others write for too long. It may be done yet, and may be asked again."""


class Manifest(NamedTuple):
    """What a page must be.

    digest: 16 bytes. chain: the hash of its tokens and of all before them. position: of its first token, from the
    beginning; tokens: how many of it are true. page_bytes, form: of `digest.Pages`. session: who wrote it, under which
    generation: see `PageStore.moved_soon`. written_s: when, in seconds since 1970.
    """

    digest: bytes
    chain: bytes
    position: int
    tokens: int
    page_bytes: int
    form: str
    session: str
    written_s: float
    generation: int = 0


class Page(NamedTuple):
    """key: 1 to 255 bytes that nothing else has: fingerprint, pool, rank and chain, the fingerprint first.

    payload: the page's bytes in logical order, of any buffer. What is put must not change until it is there.
    """

    key: bytes
    manifest: Manifest
    payload: bytes | memoryview


class Quarantine(StrEnum):
    """What became of a page that was found wrong."""

    REMOVED = "removed"
    GONE = "gone"  # that version was not there any more: it may be that only its removal was seen, so this is no alarm
    PENDING = "pending"  # this process does not see it from now on; others do, until whoever writes lets us


class Erased(NamedTuple):
    """How many pages went, and how many bytes they had."""

    pages: int = 0
    bytes: int = 0

    def __add__(self, other: tuple[Any, ...]) -> "Erased":
        pages, bytes_ = other
        return Erased(self.pages + pages, self.bytes + bytes_)


class Session(NamedTuple):
    """Pages that a session used, those that it shares with others too. used_s: when last, in seconds since 1970."""

    name: str
    pages: int
    bytes: int
    used_s: float


class Stats(NamedTuple):
    """What is in the store, and what this process saw since it opened it.

    pages, bytes, sessions: in the store, by all. size_bytes: how large it may be; populated_bytes: how much of that is
        at hand in this process (a store is slower until that is all of it).
    queued_bytes: not written yet.
    put, known: pages written, and pages that were there already. shed: pages that were not written: the queue was
        full, there was no room, or something failed. turned_away: of these, those for which the queue was full.
    fenced: pages that were refused, of sessions that had moved.
    evicted: pages that made room, or that nobody used for the retention. swept: pages of fingerprints that nobody has.
    quarantined: versions removed. damaged: entries that said nothing true, removed.
    overdue: reads that were ended. failed: how often the store beneath said no; failure: what it said last.
    aside: why an older store was put aside at the start, else "".
    """

    pages: int = 0
    bytes: int = 0
    sessions: int = 0
    size_bytes: int = 0
    populated_bytes: int = 0
    queued_bytes: int = 0
    put: int = 0
    known: int = 0
    shed: int = 0
    turned_away: int = 0
    fenced: int = 0
    evicted: int = 0
    swept: int = 0
    quarantined: int = 0
    damaged: int = 0
    overdue: int = 0
    failed: int = 0
    failure: str = ""
    aside: str = ""


class Writing(NamedTuple):
    """What one process gave to be written, since it opened the store; nobody is asked for it.

    queued_pages: not written yet. lag_s: how long the oldest of them waits. shed: pages that were not taken, as too
    much waited; lost: that were taken, and not written. Both are `shed` in `Stats`, which has the rest as it is here.
    """

    queued_pages: int = 0
    lag_s: float = 0.0
    put: int = 0
    known: int = 0
    shed: int = 0
    lost: int = 0
    fenced: int = 0
    failed: int = 0


class PageStore(Protocol):
    """Keeps pages, for all engines that share it. Never wrong about a key; it may always have less than it was given.

    It can be used by many threads. Nothing here waits without a bound, and besides what is said nothing raises: a
    store that fails has nothing, and counts that. After `close` it has nothing either.
    """

    def put(self, pages: Sequence[Page], within_s: float = WAIT_S) -> bool:
        """Keep pages; whether all are there now. False after within_s: then they may come yet.

        A page whose key is there already is not written again, but its session counts as one that uses it. A page of
        a session that came to a higher generation is refused, and counted as fenced: see `moved_soon`.
        """

    def put_soon(self, pages: Sequence[Page]) -> bool:
        """The same, without waiting. False where too much waits already: these pages are shed, and counted."""

    def used_soon(self, keys: Sequence[bytes], session: str, generation: int = 0) -> bool:
        """A session uses pages that are there: it keeps them from being evicted, and erases them with its own.

        Not one that came to a higher generation. A generation higher than any before counts from now on.
        """

    def moved_soon(self, session: str, generation: int) -> bool:
        """A session came to this generation, 0 to GENERATION_MAX: nothing is written for it under a lower one.

        So who has lost a session without knowing writes nothing into it. What is there stays: a page is what its key
        says, whoever wrote it. The highest generation that anybody named counts, in the transaction that writes; an
        erasure of the session does not lower it, one of everything does. It is known for FENCE_S at least, but of
        the many sessions that move in that time a store may forget those that moved first.
        """

    def held(self, keys: Sequence[bytes]) -> int:
        """How many of these keys, from the first on, are there without a gap."""

    def read(self, keys: Sequence[bytes]) -> AbstractContextManager[list[Page | None]]:
        """The pages of these keys, None where there is none; without a copy where the store can.

        A payload is readable inside the block only. It is a copy as of one moment with two exceptions. A page that is
        removed meanwhile turns to zeros. After READ_S_MAX the store ends the read, since it keeps old pages from
        being freed: from then on what lies there may be overwritten. So digest what you copied, after you did.

        Raises BufferError where the block leaves something behind that still looks at a payload.
        """

    def quarantine(self, key: bytes, digest: bytes, within_s: float = QUARANTINE_S) -> Quarantine:
        """Remove this very version of a page; one that was written anew stays. PENDING after within_s."""

    def erase(self, session: str, within_s: float = WAIT_S) -> Erased:
        """Remove all that a session used, also what others used with it, and overwrite it.

        What other processes have not written yet may come later: end the session first. Raises StoreBusy.
        """

    def erase_all(self, within_s: float = WAIT_S) -> Erased:
        """Remove everything, and overwrite it. Raises StoreBusy."""

    def sweep(self, keep: bytes, within_s: float = WAIT_S) -> Erased:
        """Remove what was not used for the retention; and pages as old, of fingerprints that nobody keeps.

        keep: the caller's fingerprint, with which its keys begin. Others that share the store keep their own by
        calling this, once in a retention at least. What is not done within_s goes on, and is not in the answer.
        """

    def sessions(self) -> list[Session]:
        """Who has pages here, who used them last first."""

    def stats(self) -> Stats:
        """What there is, and what was seen."""

    def writing(self) -> Writing:
        """How far this process is with what it gave. Waits for nobody."""

    def close(self, within_s: float = WAIT_S) -> None:
        """Write what waits, as far as that is done within_s, shed the rest, and end."""
