"""History swapping: a page that is valid in its own place, under the key of another. Whatever store it lies in, whoever
put it there, and however well the store was talked into it: it is looked at where it was brought, and refused there.
"""

import time

import numpy as np
import pytest

from tests.vllm_plugin.models import FakeServed
from vllm_plugin.digest import Pages, Part, Rank
from vllm_plugin.digests import Digests
from vllm_plugin.exchange import Exchange
from vllm_plugin.loads import Loads
from vllm_plugin.page import Kind, Load, Orders, Page, Where
from vllm_plugin.store import Manifest
from vllm_plugin.store import Page as Stored
from vllm_plugin.whose import Whose
from vllm_plugin.worker_side import WorkerHalf

TOKENS, WAIT_S_MAX = 16, 10.0
OURS, THEIRS = b"m" * 32, b"n" * 32
# Of one session in order, of another one, and what the first one's page would be under another tenant's salt.
FIRST, SECOND, ANOTHERS, SALTED = b"a" * 32, b"b" * 32, b"x" * 32, b"s" * 32


class World:
    """A worker's half whose memory is its own."""

    def __init__(self, store, model: bytes, seed: int) -> None:
        self.memory = np.random.default_rng(seed).integers(0, 2**32, (8, 64), np.uint32)
        group = Pages([Part.of(self.memory, "block ...")])
        digests = Digests(group, model=model, rank=Rank(), pool="p", block_tokens=TOKENS)
        self.half = WorkerHalf(scrub_share=0.0, scrub_floor_s=0.0)
        self.half.digests, self.half.model = digests, FakeServed(model)
        self.half.exchange = Exchange(
            store, manifest=Manifest, stored=Stored, pages=group, write=self._write, block_tokens=TOKENS,
            digest=digests.in_place, key=lambda chain: model + chain,
        )  # fmt: skip
        self.half.loads = Loads(self.half.exchange, group.page_bytes)

    def step(self, **orders):
        sent = Orders(1, **orders)
        self.half.before(sent)
        self.half.load(sent)
        self.half.seal(sent)
        return self.half.check(sent)

    def _write(self, blocks, contents):
        for block, content in zip(blocks, contents, strict=True):
            self.memory[block] = np.frombuffer(content, np.uint32)


def page(block: int, chain: bytes, position: int) -> Page:
    return Page(block, 1, 0, chain, position)


@pytest.fixture
def stored(any_store) -> dict[str, Stored]:
    """Pages as engines put them: of two sessions, at two positions, of two models; and an older version of one."""
    pages = [page(1, FIRST, 0), page(2, SECOND, TOKENS), page(3, ANOTHERS, TOKENS)]
    whose = {1: Whose("alice", 1), 2: Whose("alice", 1), 3: Whose("bob")}
    for model, seed in ((OURS, 1), (THEIRS, 1)):
        world = World(any_store, model, seed)
        world.step(seal=tuple(pages), whose=whose)
        world.step()
        world.half.loads.close()
    assert any_store.put([])
    keys = {"first": OURS + FIRST, "second": OURS + SECOND, "another session": OURS + ANOTHERS}
    keys["another model"] = THEIRS + SECOND
    with any_store.read(list(keys.values())) as found:
        return {name: one._replace(payload=bytes(one.payload)) for name, one in zip(keys, found, strict=True)}


def forged(stored: dict[str, Stored], how: str) -> Stored:
    """What is put under the key of the first session's second page."""
    right = stored["second"]
    if how == "older bytes":
        return right._replace(payload=bytes(len(right.payload)))
    taken = stored[{"another position": "first", "another salt": "second"}.get(how, how)]
    said = taken.manifest._replace(chain=SECOND, position=TOKENS, session="alice", generation=1)
    return Stored(right.key if how != "another salt" else OURS + SALTED, said, taken.payload)


@pytest.mark.parametrize("how", [
    "another session", "another position", "another salt", "another model", "older bytes",
])  # fmt: skip
def test_a_page_of_somewhere_else_is_refused_where_it_is_brought(any_store, stored, how):
    """With a manifest that says it belongs there; it is put aside, and its request computes it."""
    wrong = forged(stored, how)
    any_store.quarantine(wrong.key, stored["second"].manifest.digest)
    assert any_store.put([wrong])
    chain = SALTED if how == "another salt" else SECOND
    world = World(any_store, OURS, 9)
    wanted = (page(5, FIRST, 0), page(6, chain, TOKENS))

    loaded, lost, brought, blocks = set(), [], set(), set()
    begun, deadline_s = (Load("r", wanted, b""),), time.monotonic() + WAIT_S_MAX
    while not brought:
        assert time.monotonic() < deadline_s
        report = world.step(load=begun)
        begun = ()
        loaded, lost = loaded | report.loaded, [*lost, *report.lost]
        brought, blocks = world.half.brought(), blocks | world.half.not_brought()
    world.half.loads.close()

    assert loaded == {wanted[0]}
    assert [(one.page, one.kind, one.where) for one in lost] == [(wanted[1], Kind.CHANGED, Where.LOAD)]
    assert blocks == {6}
    assert any_store.held([wrong.key]) == 0


def test_what_is_where_it_belongs_is_brought(any_store, stored):
    """The same, but with nothing forged: so it is the forgery that is refused."""
    world = World(any_store, OURS, 9)
    wanted = (page(5, FIRST, 0), page(6, SECOND, TOKENS))

    fetched = world.half.exchange.fetch(wanted)
    assert [one.kind for one in world.half.exchange.place(fetched)] == [None, None]
    world.half.loads.close()
