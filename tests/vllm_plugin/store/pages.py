"""Pages for tests: what they hold follows from their number and version, so that anybody can tell a wrong one."""

import time
from hashlib import blake2b

from vllm_plugin.store import Manifest, Page, PageStore
from vllm_plugin.store.entries import decoded

OURS, THEIRS = b"fingerprint-ours", b"fingerprint-them"
PAGE_BYTES = 32 * 1024
HOUR_S = 3600.0


def content(number: int, version: int = 0, size: int = PAGE_BYTES) -> bytes:
    return (blake2b(b"%d %d" % (number, version)).digest() * (size // 64 + 1))[:size]


def digest_of(payload: bytes | memoryview) -> bytes:
    return blake2b(payload, digest_size=16).digest()


def key_of(number: int, model: bytes = OURS) -> bytes:
    return model + b"0" + blake2b(b"%d" % number, digest_size=32).digest()


def page(
    number: int, session: str = "s", *, version: int = 0, size: int = PAGE_BYTES, model: bytes = OURS, age_s: float = 0
) -> Page:
    payload = content(number, version, size)
    chain = key_of(number)[-32:]
    manifest = Manifest(digest_of(payload), chain, 16 * number, 16, size, "a form", session, time.time() - age_s)
    return Page(key_of(number, model), manifest, payload)


def right(found: Page | None) -> bool:
    """Whether a page that was read is what its manifest says."""
    return found is not None and digest_of(found.payload) == found.manifest.digest


def all_right(store: PageStore, numbers: list[int]) -> list[bool]:
    with store.read([key_of(number) for number in numbers]) as found:
        return [right(one) for one in found]


def pairs(keys) -> list[tuple[bytes, bytes]]:
    return [(key[1 : 1 + key[0]], key[1 + key[0] :]) for key in keys]


def as_digested(manifest: Manifest, payload: memoryview) -> bool:
    return digest_of(payload) == manifest.digest


def check_whole(store, fits=as_digested) -> int:
    """An LMDB store's tables agree with each other, and every page with its digest; how many pages there are."""
    tables = store._tables
    with tables.reading() as txn:

        def every(table):
            with txn.cursor(table) as cursor:
                return [(bytes(key), bytes(value)) for key, value in cursor]

        entries = {key: decoded(key, value) for key, value in every(tables.manifests)}
        assert None not in entries.values(), "an entry says nothing true"
        payloads = {key for key, _ in every(tables.payloads)}
        leaving = {key for key, _ in every(tables.leaving)}
        serials = {entry.serial.to_bytes(8, "little") for entry in entries.values()}
        assert payloads == serials | leaving, "a payload without an entry, or an entry without one"
        assert not serials & leaving, "a page leaves and is there"
        for entry in entries.values():
            payload = tables.payload(txn, entry)
            assert payload is not None, "a payload of another length"
            assert fits(entry.manifest, payload), "a payload that is not its page's"
        users = pairs(key for key, _ in every(tables.users))
        pages_of = set(pairs(key for key, _ in every(tables.pages_of)))
        assert {(name, key) for key, name in users} == pages_of, "not both ways"
        assert {key for key, _ in users} == set(entries), "a page that nobody uses, or a user of none"
        known = {name for name, _ in every(tables.sessions)}
        assert {name for _, name in users} <= known, "a session that is not listed has pages"
    return len(entries)
