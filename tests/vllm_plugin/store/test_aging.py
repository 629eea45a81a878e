"""What becomes of a store that an engine's exchange has filled: it goes on taking pages, and keeps those in use."""

import re
from collections.abc import Iterator
from hashlib import blake2b

import pytest

from vllm_plugin.exchange import Exchange
from vllm_plugin.page import Page
from vllm_plugin.store import Manifest, PageStore, open_store
from vllm_plugin.store import Page as Stored

PAGE_BYTES = 64 * 1024
FILLED = 300  # pages, of which a store of 8 MiB has some hundred
EACH = 10  # in one session


class Blocks:
    """An engine's memory: block n holds page n."""

    page_bytes, form = PAGE_BYTES, "a form"

    def __init__(self) -> None:
        self.memory: dict[int, bytes] = {}

    def bytes(self, block: int) -> bytes:
        return blake2b(b"%d" % block).digest() * (PAGE_BYTES // 64)

    def write(self, blocks: list[int], contents: list[memoryview]) -> None:
        self.memory |= {block: bytes(content) for block, content in zip(blocks, contents, strict=True)}

    def digests(self, pages: list[Page]) -> list[bytes]:
        return [blake2b(self.memory[page.block], digest_size=16).digest() for page in pages]


class Engine:
    """One that saves page after page, and is in another session after every tenth."""

    def __init__(self, store: PageStore) -> None:
        self.store, self.saved = store, 0
        blocks = Blocks()
        self.blocks = blocks
        self.exchange = Exchange(
            store, manifest=Manifest, stored=Stored, pages=blocks, write=blocks.write, digest=blocks.digests,
            key=lambda chain: b"m" + chain, block_tokens=16, session=lambda: f"minute {self.saved // EACH}",
        )  # fmt: skip

    def save(self) -> None:
        page = the(self.saved)
        digest = blake2b(self.blocks.bytes(self.saved), digest_size=16).digest()
        assert self.store.put([self.exchange.copy(page, digest)]), f"page {self.saved} was not taken"
        self.saved += 1

    def has(self, number: int) -> bool:
        return self.store.held([b"m" + the(number).chain]) == 1


def the(number: int) -> Page:
    return Page(number, 1, 0, b"chain %d" % number, 16 * number)


@pytest.fixture
def engine(place) -> Iterator[Engine]:
    store = open_store(f"lmdb://{place}?size=8MiB")
    yield Engine(store)
    store.close()


def test_a_full_store_goes_on_taking_pages(engine: Engine):
    """The oldest ones make room: not one is shed."""
    for _ in range(FILLED):
        engine.save()

    assert engine.has(FILLED - 1)
    assert not engine.has(0)
    assert engine.store.stats().shed == 0


def test_pages_that_are_loaded_now_and_then_stay(engine: Engine):
    """They are of the session in which they were last used."""
    for _ in range(FILLED):
        engine.save()
        if engine.saved % EACH == 0:
            (arrived,) = engine.exchange.load([the(3)])
            assert arrived.kind is None, engine.saved

    assert engine.has(3)
    assert not engine.has(4)


def test_without_a_name_sessions_are_minutes(engine: Engine):
    """So there are many, in the order in which they were."""
    blocks = engine.blocks
    exchange = Exchange(
        engine.store, manifest=Manifest, stored=Stored, pages=blocks, write=blocks.write, digest=blocks.digests,
        key=lambda chain: b"m" + chain, block_tokens=16,
    )  # fmt: skip

    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", exchange.copy(the(1), bytes(16)).manifest.session)
