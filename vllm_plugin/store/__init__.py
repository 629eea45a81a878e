"""Where KV pages lie outside of the engine, so that another one finds them: a contract, and a store in shared memory.

A page's manifest says what the page must be, its digest above all, and is kept apart from the bytes: bytes of another
page, or of an older one, cannot bring a digest of their own that says they are right. The store itself verifies
nothing. Whoever reads a page digests what arrived where it is used, and compares that with the manifest.

Usage:

    store = open_store("lmdb:///dev/shm/holdfast?size=8GiB&retention=1h")
    store.put_soon([Page(key, manifest, pages.bytes(block))])
    count = store.held(keys)
    with store.read(keys[:count]) as found:  # as many pages, or None where one went meanwhile
        ...                                  # copy, digest the copy; where it is wrong: store.quarantine(key, digest)
"""

from vllm_plugin.store.contract import (
    DIGEST_BYTES,
    FENCE_S,
    GENERATION_MAX,
    KEY_BYTES_MAX,
    READ_S_MAX,
    Erased,
    Manifest,
    Page,
    PageStore,
    Quarantine,
    Session,
    Stats,
    StoreBusy,
    StoreRefused,
    Writing,
)
from vllm_plugin.store.stores import open_store

__all__ = [
    "DIGEST_BYTES",
    "FENCE_S",
    "GENERATION_MAX",
    "KEY_BYTES_MAX",
    "READ_S_MAX",
    "Erased",
    "Manifest",
    "Page",
    "PageStore",
    "Quarantine",
    "Session",
    "Stats",
    "StoreBusy",
    "StoreRefused",
    "Writing",
    "open_store",
]
