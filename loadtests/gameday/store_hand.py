"""A hand in a page store in shared memory: finds pages that are stored, and damages them behind the store's back.

Any process of the same user that opens the store can be one; no engine needs to know.
"""

import ctypes
import random
import struct
import time
from typing import Any, cast

from vllm_plugin.store import open_store
from vllm_plugin.store.contract import Manifest, Quarantine
from vllm_plugin.store.entries import decoded
from vllm_plugin.store.memory import address_of

KINDS = ("flip", "flips", "swap", "rows", "replay", "zero", "truncate")
ROUTES = ("map", "lmdb")  # a wild write into the map, or another value of LMDB's
STORED_S_MAX = 5.0  # that a page may take to be there
POLL_S = 0.005
ROW_BYTES = 128
_SERIAL = struct.Struct("@Q")


class StoreHand:
    """In the store at an address, which engines have open too. populate: have all of its memory at hand at once."""

    def __init__(self, address: str, *, populate: bool = True) -> None:
        self._store = cast(Any, open_store(address, populate=populate))
        self._tables = self._store._tables
        self._old: dict[bytes, bytes] = {}

    def close(self) -> None:
        """Leave the store to the others."""
        self._store.close()

    def manifests(self) -> dict[bytes, Manifest]:
        """Of all pages that are there, by key."""
        with self._tables.reading() as txn, txn.cursor(self._tables.manifests) as cursor:
            entries = ((bytes(key), decoded(key, value)) for key, value in cursor)
            return {key: entry.manifest for key, entry in entries if entry is not None}

    def keys(self, chains: list[bytes]) -> list[bytes]:
        """Of these pages, once all are there. Raises AssertionError where one is not in time."""
        deadline_s = time.monotonic() + STORED_S_MAX
        while True:
            stored = self._stored()
            if all(chain in stored for chain in chains):
                return [stored[chain] for chain in chains]
            assert time.monotonic() < deadline_s, f"{sum(chain not in stored for chain in chains)} pages not stored"
            time.sleep(POLL_S)

    def keep(self, key: bytes) -> None:
        """What «replay» brings back under another key is what this one holds now."""
        self._old = {key: self.payload(key)}

    def payload(self, key: bytes) -> bytes:
        """Of a page that is there."""
        with self._tables.reading() as txn:
            return bytes(txn.get(self._number(txn, key), None, self._tables.payloads))

    def damage(self, kind: str, route: str, key: bytes, other: bytes, seed: int) -> bool:
        """other: the page that «swap» exchanges it with. Returns whether the page is another one now."""
        before = self.payload(key)
        if kind == "swap":
            self._write(route, key, self.payload(other))
            self._write(route, other, before)
        elif kind == "replay":
            (old,) = (payload for kept, payload in self._old.items() if kept != key)
            self._write(route, key, old)
        else:
            self._write(route, key, spoiled(kind, before, random.Random(seed), whole=route == "map"))
        return self.payload(key) != before

    def put_under(self, key: bytes, other: bytes) -> bool:
        """Put the page of another key under this one, through the store itself, with a manifest that says it is right.

        Returns whether it is there now.
        """
        with self._store.read([key, other]) as (right, wrong):
            manifest = (right or wrong).manifest._replace(digest=wrong.manifest.digest)
            lying = wrong._replace(key=key, manifest=manifest, payload=bytes(wrong.payload))
            digest = right.manifest.digest if right is not None else None
        if digest is not None and self._store.quarantine(key, digest) is Quarantine.PENDING:
            return False
        return bool(self._store.put([lying]))

    def _stored(self) -> dict[bytes, bytes]:
        """Keys by the chains of their pages."""
        return {manifest.chain: key for key, manifest in self.manifests().items()}

    def _number(self, txn: Any, key: bytes) -> bytes:
        return _SERIAL.pack(self._tables.entry(txn, key).serial)

    def _write(self, route: str, key: bytes, payload: bytes) -> None:
        if route == "lmdb":
            with self._tables.writing() as txn:
                txn.put(self._number(txn, key), payload, db=self._tables.payloads)
            return
        with self._tables.reading() as txn:
            view = txn.get(self._number(txn, key), None, self._tables.payloads)
            assert view.nbytes == len(payload)
            ctypes.memmove(address_of(view), payload, len(payload))


def spoiled(kind: str, page: bytes, rng: random.Random, *, whole: bool) -> bytes:
    """A page with something done to it. whole: it keeps its length, also when it is cut."""
    half = len(page) // 2
    if kind == "zero":
        return bytes(len(page))
    if kind == "truncate":
        return page[:half] + bytes(len(page) - half if whole else 0)
    rest = bytearray(page)
    if kind == "rows":
        one, two = (slice(ROW_BYTES * row, ROW_BYTES * (row + 1)) for row in rng.sample(range(half // ROW_BYTES), 2))
        rest[one], rest[two] = page[two], page[one]
    else:
        for bit in rng.sample(range(8 * len(page)), {"flip": 1, "flips": 2}[kind]):
            rest[bit // 8] ^= 1 << bit % 8
    return bytes(rest)
