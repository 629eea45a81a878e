"""The journal: what happened to each request, one JSON fact per line, append-only."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gateway.books.inbox import Inbox
from gateway.books.journal_file import FACT_BYTES_MAX, FLUSH_FACTS_MAX, JournalFile, number_of

log = structlog.get_logger()

NOTHING: Mapping[str, Any] = {}
OWN = frozenset(("seq", "at", "kind"))
Fact = tuple[float, str, Mapping[str, Any], Mapping[str, Any]]  # unix seconds, kind, what it is about, and its fields
RETRY_S = 1.0  # how soon after a failure the disk is tried again


class Journal:
    """Facts in the order they were appended, on disk within `flush_s` and one flush; never prompts, never answers.

    Each line is `{"seq":…,"at":…,"kind":…,…}`: `seq` counts lines without a hole, across restarts too;
    `at` is unix seconds. While the file cannot be written, facts wait, up to `facts_max` of them, until it can be.
    A fact beyond that is counted as lost, and a `journal.gap` fact says how many were. What a crash left of a last
    batch is cut off when the file is opened.

    clock: unix seconds.
    facts_max: how many facts may wait for the disk.
    flush_s: how long a fact waits for others to share a flush with, in seconds.
    batch_max: how many facts share a flush at most.
    appended, kept: how many facts were taken in, and how many of them, the first ones, are on disk or lost for good.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        facts_max: int = 65_536,
        flush_s: float = 0.02,
        batch_max: int = FLUSH_FACTS_MAX,
    ) -> None:
        assert batch_max <= FLUSH_FACTS_MAX
        self._clock = clock
        self._file = JournalFile(path)
        self._inbox: Inbox[Fact] = Inbox(facts_max, batch_max, linger_s=flush_s)
        # Each has one writer: the event loop's thread, and for the others the journal's thread.
        self.appended = self.kept = 0
        self._dropped = 0
        self._abandoned = self._unworded = 0
        self._told = 0
        self._failing = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-journal", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Facts that were not kept since the start: too many waited for the disk, or it failed to the end."""
        return self._dropped + self._abandoned + self._unworded

    @property
    def healthy(self) -> bool:
        """Whether facts reach the disk, and none is lost that no `journal.gap` there tells of."""
        return not self._failing and self.lost == self._told

    def append(self, kind: str, about: Mapping[str, Any] = NOTHING, fields: Mapping[str, Any] = NOTHING) -> None:
        """Note a fact; never blocks, from one thread only. The journal's own thread words it: many in a row cost less.

        kind: a closed set of names, such as `request.settled`.
        about, fields: JSON values, not changed any more; by contract no prompt, no answer and no secret. `seq`, `at`
            and `kind` are taken. A fact that cannot be written, for its size or its values, is counted as lost.
        """
        if self._inbox.put((self._clock(), kind, about, fields)):
            self.appended += 1
        else:
            self._dropped += 1

    def close(self) -> None:
        """Put what waits on disk, by one last try where that fails, then end; facts appended later are lost.

        May be called again.
        """
        self._ending.set()
        self._inbox.close()
        self._thread.join()

    def _run(self) -> None:
        for batch in self._inbox.batches():
            if batch:
                self._keep([fact for one in batch if (fact := self._worded(one)) is not None])
                self.kept += len(batch)
        if self._abandoned:
            log.error("journal.abandoned", facts=self._abandoned)
        self._file.close()

    def _keep(self, batch: list[bytes]) -> None:
        """Write a batch, again and again until it is on disk or the journal ends; what follows waits meanwhile."""
        while not self._written(batch):
            if self._ending.wait(RETRY_S):
                if not self._written(batch):
                    self._abandoned += len(batch)
                return

    def _written(self, batch: list[bytes]) -> bool:
        lost = self.lost
        try:
            self._file.write([*self._gap(lost - self._told), *batch])
        except OSError as error:
            if not self._failing:  # one line for each time that it breaks, not for each try
                log.error("journal.write_failed", error=repr(error))
            self._failing = True
            return False
        self._told = lost
        if self._failing:
            log.warning("journal.written_again", facts_lost=lost)
        self._failing = False
        return True

    def _gap(self, lost: int) -> list[bytes]:
        if not lost:
            return []
        return [encoded((self._clock(), "journal.gap", {"lost": lost}, NOTHING))]

    def _worded(self, fact: Fact) -> bytes | None:
        """Word a fact; None, and one lost, where that is impossible: a bug of whoever noted it."""
        try:
            worded = encoded(fact)
            if len(worded) < FACT_BYTES_MAX:
                return worded
            why = "it is too large"
        except Exception as error:
            why = repr(error)
        log.error("journal.fact_lost", kind=fact[1], why=why)
        self._unworded += 1
        return None


def encoded(fact: Fact) -> bytes:
    """Word a fact, but for its number. Time to the microsecond; `round` would take longer than all the rest."""
    at, kind, about, fields = fact
    assert OWN.isdisjoint(about)
    assert OWN.isdisjoint(fields)
    return msgspec.json.encode({"at": int(at * 1e6 + 0.5) / 1e6, "kind": kind, **about, **fields})


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Give the facts of a journal in order, also while it is being written; an unfinished last line is left out.

    Raises ValueError, with the line's number, at a damaged line.
    """
    with path.open("rb") as lines:
        for count, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            if number_of(line) is None:
                raise ValueError(f"{path}:{count}: not a fact")
            yield msgspec.json.decode(line)
