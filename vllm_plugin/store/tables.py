"""The store's tables, and what is done to them in one transaction. Everything here is called by the writer's thread.

    manifests   key -> entry: manifest and number
    payloads    number -> bytes
    pages_of    session and key of a page that it uses        users   key and session; the same, the other way round
    sessions    session -> when it was last used
    leaving     numbers of payloads that nothing points to any more
    kept        fingerprint -> when somebody last had it       facts   what makes room: see `Tables.turn`
    moved       session -> the highest generation that anybody named for it, and when; 0 is not written down

A page goes in two steps. The first takes its manifest away, so that nobody finds it; the second overwrites the
payload and frees it. A process that dies between them leaves a number in `leaving`, for whoever writes next. So a
death never leaves a page whose payload is half gone, and what was freed holds zeros. One thing does not: what a
process had written of a transaction that it died in. That is free memory, and overwritten when it is used.
"""

import math
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TypeAlias

import lmdb

from vllm_plugin.store.contract import FENCE_S, Erased, Page, Session
from vllm_plugin.store.entries import Entry, decoded, encoded, session_key, session_name

STEP_BYTES, STEP_PAGES = 64 * 2**20, 1024  # in one transaction: others wait for that long to write
SLACK = 32  # a part of so many is kept free: freeing needs some, and room is made for more than is asked for
MOVED_MAX, MOVED_SHARE = 262_144, 1024  # sessions that are known to have moved; one for so many bytes at most

_SERIAL = struct.Struct("@Q")  # as LMDB compares it
_TIME = struct.Struct("<d")
_MOVED = struct.Struct("<Qd")
Transaction: TypeAlias = "lmdb.Transaction[memoryview]"  # at run time it takes no such argument


class Tables:
    """Of one environment. zero: overwrites what a view of its memory shows. Made within a transaction that writes."""

    COUNT = 9

    def __init__(self, env: lmdb.Environment, size_bytes: int, zero: Callable[[memoryview], None]) -> None:
        self.env = env
        self.limit_bytes = size_bytes - size_bytes // SLACK
        self.slack_bytes = size_bytes // SLACK
        self._page_bytes = env.stat()["psize"]
        self._zero = zero
        with env.begin(write=True) as txn:
            self.manifests = env.open_db(b"manifests", txn)
            self.payloads = env.open_db(b"payloads", txn, integerkey=True)
            self.sessions = env.open_db(b"sessions", txn)
            self.pages_of = env.open_db(b"pages_of", txn)
            self.users = env.open_db(b"users", txn)
            self.leaving = env.open_db(b"leaving", txn, integerkey=True)
            self.kept = env.open_db(b"kept", txn)
            self.facts = env.open_db(b"facts", txn)
            self.moved = env.open_db(b"moved", txn)
        self._moved_max = min(MOVED_MAX, size_bytes // MOVED_SHARE)

    def reading(self) -> Transaction:
        """A snapshot."""
        return self.env.begin(None, None, False, True)

    def writing(self) -> Transaction:
        """The only one of all processes that writes; waits for the others."""
        return self.env.begin(None, None, True, True)

    def entry(self, txn: Transaction, key: bytes) -> Entry | None:
        """What a key stands for, None where it does for nothing or is damaged."""
        stored = txn.get(key, None, self.manifests)
        return None if stored is None else decoded(key, stored)

    def payload(self, txn: Transaction, entry: Entry) -> memoryview | None:
        """The bytes of an entry, None where they are not there, or not as many."""
        found = txn.get(_SERIAL.pack(entry.serial), None, self.payloads)
        return found if found is not None and found.nbytes == entry.manifest.page_bytes else None

    def used_bytes(self, txn: Transaction) -> int:
        """What the tables take."""
        pages = (self.manifests, self.payloads, self.leaving)
        stats = [txn.stat(table) for table in (*pages, self.sessions, self.pages_of, self.users, self.kept, self.moved)]
        taken = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return int(taken * self._page_bytes)

    def taken_bytes(self, payload_bytes: int) -> int:
        """What a payload takes: whole pages, one of them with a head; and something for its entries."""
        return (payload_bytes // self._page_bytes + 2) * self._page_bytes

    def add(self, txn: Transaction, pages: Iterable[Page], now_s: float) -> tuple[int, int]:
        """Write pages that are not there; how many were written, and how many were there. Raises MapFullError."""
        put = known = 0
        with txn.cursor(self.payloads) as cursor:
            serial = _SERIAL.unpack(cursor.key())[0] if cursor.last() else 0
        for page in pages:
            if self.entry(txn, page.key):
                known += 1
            else:
                self.unlist(txn, page.key)  # what is damaged
                serial += 1
                txn.put(_SERIAL.pack(serial), page.payload, db=self.payloads, append=True)
                txn.put(page.key, encoded(page.key, page.manifest, serial), db=self.manifests)
                put += 1
            self.note(txn, [page.key], page.manifest.session, now_s)
        return put, known

    def missing_bytes(self, txn: Transaction, pages: Iterable[Page]) -> int:
        """What those of these pages would take that are not there."""
        return sum(self.taken_bytes(one.manifest.page_bytes) for one in pages if not self.entry(txn, one.key))

    def note(self, txn: Transaction, keys: Sequence[bytes], session: str, now_s: float) -> None:
        """A session uses pages, one at least."""
        name = session_key(session)
        txn.put(name, _TIME.pack(now_s), db=self.sessions)
        for key in keys:
            if txn.put(_pair(key, name), b"", overwrite=False, db=self.users):
                txn.put(_pair(name, key), b"", db=self.pages_of)

    def may_write(self, txn: Transaction, session: str, generation: int, now_s: float) -> bool:
        """Whether this is the highest generation of a session that anybody named; from now on, if it is."""
        name = session_key(session)
        highest, _ = _moved(txn.get(name, b"", self.moved))
        if generation > highest:
            txn.put(name, _MOVED.pack(generation, now_s), db=self.moved)
            if txn.stat(self.moved)["entries"] > self._moved_max:
                self._forget_moved(txn, math.inf, self._moved_max // 8)
        return bool(generation >= highest)

    def forget_moved(self, now_s: float) -> None:
        """Those that moved too long ago for anybody to come back."""
        with self.writing() as txn:
            self._forget_moved(txn, now_s - FENCE_S, self._moved_max)

    def _forget_moved(self, txn: Transaction, before_s: float, count: int) -> None:
        with txn.cursor(self.moved) as cursor:
            by_age = sorted((_moved(value)[1], bytes(name)) for name, value in cursor)
        for moved_s, name in by_age[:count]:
            if moved_s < before_s:
                txn.delete(name, db=self.moved)

    def unlist(self, txn: Transaction, key: bytes) -> Erased:
        """The first step: a key stands for nothing any more."""
        stored = txn.get(key, None, self.manifests)
        if stored is None:
            return Erased()
        entry = decoded(key, stored)
        if entry:
            txn.put(_SERIAL.pack(entry.serial), b"", db=self.leaving)
        txn.delete(key, db=self.manifests)
        for name in self.paired(txn, self.users, key):
            txn.delete(_pair(key, name), db=self.users)
            txn.delete(_pair(name, key), db=self.pages_of)
        return Erased(1, entry.manifest.page_bytes) if entry else Erased()

    def clear(self) -> bool:
        """The second step, as far as one transaction goes; whether something is left."""
        cleared = 0
        with self.reading() as txn:
            if not txn.stat(self.leaving)["entries"]:
                return False
        with self.writing() as txn:
            numbers = list(self.first(txn, self.leaving, STEP_PAGES))
            for done, number in enumerate(numbers):
                if cleared >= STEP_BYTES:
                    return done < len(numbers)
                payload = txn.get(number, None, self.payloads)
                if payload is not None:
                    cleared += payload.nbytes
                    self._zero(payload)
                    txn.delete(number, db=self.payloads)
                txn.delete(number, db=self.leaving)
        return len(numbers) == STEP_PAGES

    def turn(self) -> None:
        """A transaction that changes next to nothing: LMDB reuses what was freed only by the last but one."""
        with self.writing() as txn:
            turns = txn.get(b"turns", None, self.facts)
            txn.put(b"turns", _SERIAL.pack((_SERIAL.unpack(turns)[0] if turns else 0) + 1), db=self.facts)

    def drop_session(self, txn: Transaction, name: bytes, wanted_bytes: float) -> Erased:
        """Take from a session pages that nobody else uses, its last ones first, until they have so many bytes.

        Where they have not, the session is gone; or there are more of them than one transaction may take.
        """
        gone = Erased()
        found = [(self.entry(txn, key), key) for key in self.paired(txn, self.pages_of, name)]
        found.sort(key=lambda one: one[0].manifest.position if one[0] else -1, reverse=True)
        for entry, key in found:
            if gone.bytes >= wanted_bytes or gone.pages >= STEP_PAGES:
                return gone
            txn.delete(_pair(key, name), db=self.users)
            txn.delete(_pair(name, key), db=self.pages_of)
            if entry is None or not self.paired(txn, self.users, key, 1):
                gone += self.unlist(txn, key)
        txn.delete(name, db=self.sessions)
        return gone

    def make_room(self, wanted_bytes: float, but: Container[bytes]) -> Erased:
        """Evict what was used longest ago, as far as one transaction goes; not of some sessions."""
        gone = Erased()
        with self.writing() as txn:
            for _, name in self.by_age(txn):
                if gone.bytes >= wanted_bytes or gone.pages >= STEP_PAGES:
                    break
                if name not in but:
                    gone += self.drop_session(txn, name, wanted_bytes - gone.bytes)
        self.clear_all()
        self.turn()
        return gone

    def clear_all(self) -> None:
        """The second step, for all that is leaving."""
        while self.clear():
            pass

    def forget(self, before_s: float) -> Erased:
        """Remove sessions that were not used since."""
        gone = Erased()
        with self.reading() as txn:
            old = [name for used_s, name in self.by_age(txn) if used_s < before_s]
        for name in old:
            there = True
            while there:
                with self.writing() as txn:
                    used = txn.get(name, None, self.sessions)  # again: it may be in use since
                    there = used is not None and _TIME.unpack(used)[0] < before_s
                    gone += self.drop_session(txn, name, math.inf) if there else Erased()
        self.clear_all()
        return gone

    def remove(self, keys: Sequence[bytes]) -> Erased:
        """Remove pages, whoever uses them."""
        gone = Erased()
        for first in range(0, len(keys), STEP_PAGES):
            with self.writing() as txn:
                for key in keys[first : first + STEP_PAGES]:
                    gone += self.unlist(txn, key)
        self.clear_all()
        return gone

    def erase(self, session: str) -> Erased:
        """Remove all that a session used."""
        name, gone, there = session_key(session), Erased(), True
        while there:
            with self.reading() as txn:
                keys = self.paired(txn, self.pages_of, name)
            gone += self.remove(keys)
            with self.writing() as txn:  # more may have come meanwhile
                there = bool(self.paired(txn, self.pages_of, name, 1))
                if not there:  # else who dies here leaves pages that no session has, which would make no room
                    txn.delete(name, db=self.sessions)
        return gone

    def erase_all(self) -> Erased:
        """Remove everything."""
        gone = Erased()
        while True:
            with self.reading() as txn:
                keys = list(self.first(txn, self.manifests, STEP_PAGES))
            if not keys:
                break
            gone += self.remove(keys)
        with self.writing() as txn:
            for table in (self.sessions, self.pages_of, self.users, self.moved):
                txn.drop(table, delete=False)
        self.mend()
        return gone

    def mend(self) -> int:
        """Remove entries that say nothing true, and payloads that nothing points to; how many entries."""
        with self.reading() as txn:
            with txn.cursor(self.manifests) as cursor:
                found = [(bytes(key), decoded(key, value)) for key, value in cursor]
            with txn.cursor(self.payloads) as cursor:
                lost = {bytes(number) for number in cursor.iternext(True, False)}
        lost -= {_SERIAL.pack(entry.serial) for _, entry in found if entry}
        damaged = [key for key, entry in found if entry is None]
        if lost:
            with self.writing() as txn:
                for number in lost:
                    txn.put(number, b"", db=self.leaving)
        self.remove(damaged)
        return len(damaged)

    def pinned(self) -> bool:
        """Whether a reader, of any process that lives, keeps from being reused what was freed."""
        self.env.reader_check()
        readers = [line.split() for line in self.env.readers().splitlines()]
        seen = [int(words[2]) for words in readers if len(words) == 3 and words[2].isdigit()]
        return bool(seen) and min(seen) < self.env.info()["last_txnid"]

    def by_age(self, txn: Transaction) -> list[tuple[float, bytes]]:
        """Sessions, and when they were last used; longest ago first."""
        with txn.cursor(self.sessions) as cursor:
            return sorted((_TIME.unpack(value)[0], bytes(name)) for name, value in cursor)

    def strangers(self, txn: Transaction, keep: Sequence[bytes], before_s: float) -> list[bytes]:
        """Keys under none of these fingerprints, of pages that were written before; those to keep are not looked at."""
        found, ends = [], [(prefix, _after(prefix)) for prefix in keep]
        with txn.cursor(self.manifests) as cursor:
            there = cursor.first()
            while there:
                key = bytes(cursor.key())
                end = next((end for prefix, end in ends if key.startswith(prefix)), None)
                if end is None:
                    entry = decoded(key, cursor.value())
                    if entry is None or entry.manifest.written_s < before_s:
                        found.append(key)
                    there = cursor.next()
                elif end:
                    there = cursor.set_range(end)
                else:
                    return found
        return found

    def keep(self, fingerprint: bytes, now_s: float, retention_s: float) -> list[bytes]:
        """Somebody has this fingerprint; who else had one lately."""
        with self.writing() as txn:
            txn.put(fingerprint, _TIME.pack(now_s), db=self.kept)
            with txn.cursor(self.kept) as cursor:
                all_kept = [(bytes(name), _TIME.unpack(value)[0]) for name, value in cursor]
            for name, said_s in all_kept:
                if said_s < now_s - retention_s:
                    txn.delete(name, db=self.kept)
        return [name for name, said_s in all_kept if said_s >= now_s - retention_s]

    def told(self, txn: Transaction) -> list[Session]:
        """Who has pages, who used them last first."""
        return [self._session(txn, used_s, name) for used_s, name in reversed(self.by_age(txn))]

    def _session(self, txn: Transaction, used_s: float, name: bytes) -> Session:
        entries = [self.entry(txn, key) for key in self.paired(txn, self.pages_of, name)]
        sizes = [entry.manifest.page_bytes for entry in entries if entry]
        return Session(session_name(name), len(sizes), sum(sizes), used_s)

    @staticmethod
    def paired(txn: Transaction, table: "lmdb._Database", first: bytes, count: int | None = None) -> list[bytes]:
        """What is paired with something in a table of pairs; all of it, or so many."""
        stem = _pair(first, b"")
        found: list[bytes] = []
        with txn.cursor(table) as cursor:
            there = cursor.set_range(stem)
            while there and len(found) != count:
                pair = bytes(cursor.key())
                if not pair.startswith(stem):
                    break
                found.append(pair[len(stem) :])
                there = cursor.next()
        return found

    @staticmethod
    def first(txn: Transaction, table: "lmdb._Database", count: int) -> Iterator[bytes]:
        """The first keys of a table."""
        with txn.cursor(table) as cursor:
            for _, key in zip(range(count), cursor.iternext(True, False), strict=False):
                yield bytes(key)


def _pair(first: bytes, second: bytes) -> bytes:
    """One key of two, which are 255 bytes at most. All of the same first lie together.

    LMDB's own way to keep many values of a key is not used: it loses count of its pages, so that a whole file looks
    damaged.
    """
    return bytes([len(first)]) + first + second


def _moved(stored: bytes | memoryview) -> tuple[int, float]:
    """A generation, and when it was named; none, long ago, for what says nothing."""
    generation, moved_s = _MOVED.unpack(stored) if len(stored) == _MOVED.size else (0, 0.0)
    return generation, moved_s


def _after(prefix: bytes) -> bytes:
    """The least key behind all that begin so; empty where there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""
