"""Valid pages in the wrong place, by somebody who can write to a store: what an engine that loads them makes of it.

    .venv-vllm/bin/python -m tests.vllm_plugin.store.swaps OUT

On LMDB whoever does it knows how entries are made, and makes them right: nothing but what the page is found to be in
its block stands against them. On Redis they have all but the key. Writes its JSON to OUT.
"""

import argparse
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tests.vllm_plugin.store.mortals import until
from tests.vllm_plugin.store.paged import TOKENS, Paged, key_of
from tests.vllm_plugin.store.redis_servers import Redis, address_of, made_key
from vllm_plugin.page import Page
from vllm_plugin.store import open_store
from vllm_plugin.store.entries import encoded
from vllm_plugin.store.redis_server import PREFIX

PAGE_WORDS = 4096


def chain_of(tokens: str, salt: str = "") -> bytes:
    """As vLLM's: over the tokens, all before them, and the tenant's salt."""
    return sha256(f"{salt}|{tokens}".encode()).digest()


WANTED = Page(1, 1, 0, chain_of("alice asks", "tenant one"), TOKENS)
BESIDE = Page(2, 1, 0, chain_of("alice asks, and goes on", "tenant one"), 2 * TOKENS)
OTHERS = {  # valid pages, sealed by an engine of the same model
    "another session's page": Page(1, 1, 0, chain_of("bob asks", "tenant one"), TOKENS),
    "the same tokens at another position": Page(1, 1, 0, WANTED.chain, 5 * TOKENS),
    "the same tokens of another tenant's salt": Page(1, 1, 0, chain_of("alice asks", "tenant two"), TOKENS),
    "a page of an earlier turn": Page(1, 1, 0, chain_of("alice asked", "tenant one"), 0),
}


def main() -> None:
    """Try all of it."""
    parser = argparse.ArgumentParser(description="Valid pages in the wrong place.")
    parser.add_argument("out", type=Path)
    parser.parse_args().out.write_text(json.dumps(tried()))


def tried() -> list[dict[str, Any]]:
    """Each case on each store."""
    top = Path(tempfile.mkdtemp(prefix="holdfast-swaps-", dir="/dev/shm"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, top)
        lmdb = stack.enter_context(Opened(f"lmdb://{top}/store?size=8MiB"))
        server = stack.enter_context(Redis(top / "redis"))
        redis = stack.enter_context(Opened(address_of([server], made_key(top / "key"))))
        rows = [case(lmdb, "LMDB", name, harm) for name, harm in lmdb_cases(lmdb).items()]
        return rows + [case(redis, "Redis", name, harm) for name, harm in redis_cases(redis, server).items()]


class Opened:
    """A store, open."""

    def __init__(self, url: str) -> None:
        self.store: Any = open_store(url, populate=False)

    def __enter__(self) -> Any:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()


def world_of(store: Any) -> Paged:
    """An engine with its own memory."""
    return Paged(store, [np.zeros((4, PAGE_WORDS), np.uint32)], "block ...")


def sealed(world: Paged, page: Page, version: int = 0) -> Any:
    """A page as it is stored, of content that follows from what it is."""
    seed = int.from_bytes(sha256(b"%s %d %d" % (page.chain, page.position, version)).digest()[:8], "big")
    world.layers[0][page.block] = np.random.default_rng(seed).integers(0, 2**32, PAGE_WORDS, np.uint32)
    return world.copies([page])[0]


def case(store: Any, where: str, name: str, harm: Callable[[], None]) -> dict[str, Any]:
    """Whether an engine is given the page that was harmed. The one beside it is there. Raises AssertionError."""
    store.erase_all()
    writer, reader = world_of(store), world_of(store)
    pages = [sealed(writer, WANTED), sealed(writer, BESIDE)]
    until(lambda: store.put(pages), "it could not be put")
    until(lambda: [one.kind for one in reader.exchange.load([WANTED, BESIDE])] == [None, None], "it is not there")
    harm()
    (wanted,) = world_of(store).exchange.load([WANTED])
    (again,) = world_of(store).exchange.load([WANTED])
    until(lambda: world_of(store).exchange.load([BESIDE])[0].kind is None, "what is beside it is not there")
    return {
        "store": where, "case": name, "refused": wanted.kind is not None, "as": wanted.kind or "served",
        "again_refused": again.kind is not None,
    }  # fmt: skip


def lmdb_cases(store: Any) -> dict[str, Callable[[], None]]:
    tables, world, key = store._tables, world_of(store), key_of(WANTED.chain)

    def serial(txn: Any) -> int:
        return int(tables.entry(txn, key).serial)

    def write(payload: bytes, manifest: Any = None) -> None:
        with tables.writing() as txn:
            number = serial(txn)
            txn.put(struct.pack("@Q", number), payload, db=tables.payloads)
            if manifest is not None:
                txn.put(key, encoded(key, manifest, number), db=tables.manifests)

    def entry_of(other: Page) -> None:
        assert store.put([sealed(world, other)])
        with tables.writing() as txn:
            txn.put(key, bytes(txn.get(key_of(other.chain), None, tables.manifests)), db=tables.manifests)

    cases: dict[str, Callable[[], None]] = {}
    for name, other in OTHERS.items():
        copy = sealed(world, other)
        cases[f"{name}: its bytes"] = lambda copy=copy: write(copy.payload)
        cases[f"{name}: whole, with its manifest made anew"] = lambda copy=copy: write(copy.payload, copy.manifest)
    moved = OTHERS["another session's page"]
    cases["another session's page: its entry as it is"] = lambda: entry_of(moved)
    old, right = sealed(world, WANTED, version=1), sealed(world, WANTED)
    cases["an older version: its bytes"] = lambda: write(old.payload)
    cases["truncated"] = lambda: write(right.payload[:-4096])
    short = right.manifest._replace(page_bytes=right.manifest.page_bytes - 4096)
    cases["truncated, and its manifest says so"] = lambda: write(right.payload[:-4096], short)
    cases["one bit"] = lambda: write(bytes([right.payload[0] ^ 1]) + right.payload[1:])
    return cases


def redis_cases(store: Any, server: Redis) -> dict[str, Callable[[], None]]:
    world, name = world_of(store), PREFIX + b"p:" + key_of(WANTED.chain)
    right = sealed(world, WANTED)

    def write(payload: bytes) -> None:
        server.ask("HSET", name, 0, payload)

    def moved(other: Page) -> None:
        assert store.put([sealed(world, other)])
        server.ask("COPY", PREFIX + b"p:" + key_of(other.chain), name, "REPLACE")

    def older(whole: bool) -> None:
        old, old_bytes = server.ask("DUMP", name), server.ask("HGET", name, 0)
        store.quarantine(key_of(WANTED.chain), right.manifest.digest)
        assert store.put([sealed(world, WANTED, version=1)])
        server.ask("RESTORE", name, 0, old, "REPLACE") if whole else write(old_bytes)

    cases: dict[str, Callable[[], None]] = {}
    for what, other in OTHERS.items():
        copy = sealed(world, other)
        cases[f"{what}: its bytes"] = lambda copy=copy: write(copy.payload)
        if other.chain != WANTED.chain:  # else it is under the same key
            cases[f"{what}: whole"] = lambda other=other: moved(other)
    cases["an older version: its bytes"] = lambda: older(whole=False)
    cases["an older version: whole, to who has seen the newer one"] = lambda: older(whole=True)
    cases["truncated"] = lambda: write(right.payload[:-4096])
    cases["one bit"] = lambda: write(bytes([right.payload[0] ^ 1]) + right.payload[1:])
    cases["a value of 64 MiB"] = lambda: server.ask("HSET", name, 0, bytes(64 * 2**20))
    return cases


if __name__ == "__main__":
    main()
