"""Plans and exchange with a store of this process: what is brought, and what is not believed."""

import math
import threading
import time

import numpy as np
import pytest

from tests.vllm_plugin import stores
from tests.vllm_plugin.models import FakeServed
from tests.vllm_plugin.tensors import LAYOUTS, logical, pages
from vllm_plugin import crew
from vllm_plugin.digest import Pages, Part, Rank
from vllm_plugin.digests import Digests
from vllm_plugin.exchange import Exchange
from vllm_plugin.loads import Loads
from vllm_plugin.page import Kind, Load, Orders, Page, Where
from vllm_plugin.plans import LOADS_MAX, Plans
from vllm_plugin.whose import Whose
from vllm_plugin.worker_side import WorkerHalf


def page(block: int, chain: bytes, position: int = 0) -> Page:
    return Page(block, 1, 0, chain, position)


class Asked:
    """What a store has, at once."""

    def __init__(self, store: stores.DictStore) -> None:
        self.held = lambda request_id, keys: store.held(keys)

    def drop(self, request_id: str) -> None:
        pass


class World:
    """A worker's half with memory and a store."""

    def __init__(self, store: stores.DictStore, model: bytes = b"m") -> None:
        self.memory = np.random.default_rng(len(store.pages)).integers(0, 2**32, (8, 64), np.uint32)
        group = Pages([Part.of(self.memory, "block ...")])
        digests = Digests(group, model=model, rank=Rank(), pool="p", block_tokens=16)
        self.half = WorkerHalf(scrub_share=0.0, scrub_floor_s=0.0)
        self.half.digests = digests
        self.half.model = self.model = FakeServed(model)
        self.half.exchange = Exchange(
            store, manifest=stores.Manifest, stored=stores.Page, pages=group, write=self.write, block_tokens=16,
            digest=digests.in_place, key=lambda chain: model + chain,
        )  # fmt: skip

        self.half.loads = Loads(self.half.exchange, group.page_bytes)

    def load(self, *loads, **orders):
        """Steps until nobody waits any more. What was brought, what was lost, whose wait is over, which blocks not."""
        loaded, lost, brought, blocks = set(), [], set(), set()
        deadline_s = time.monotonic() + 10
        while len(brought) < len(loads):
            assert time.monotonic() < deadline_s
            report = self.step(load=() if orders.pop("begun", False) else loads, **orders)
            orders = {"begun": True}
            loaded |= report.loaded
            lost += report.lost
            brought |= self.half.brought()
            blocks |= self.half.not_brought()
        return loaded, lost, brought, blocks

    def write(self, blocks: list[int], contents: list[bytes]) -> None:
        for block, content in zip(blocks, contents, strict=True):
            self.memory[block] = np.frombuffer(content, np.uint32)

    def step(self, between=lambda: None, **orders):
        sent = Orders(1, **orders)
        self.half.before(sent)
        between()
        self.half.load(sent)
        self.half.seal(sent)
        return self.half.check(sent)


@pytest.fixture
def store() -> stores.DictStore:
    """With three pages that another engine sealed."""
    store = stores.DictStore()
    world = World(store)
    world.step(seal=(page(1, b"a"), page(2, b"b", 16), page(3, b"c", 32)))
    world.step()
    assert len(store.pages) == 3
    return store


WANTED = (page(5, b"a"), page(6, b"b", 16), page(7, b"c", 32))


def test_what_one_engine_sealed_another_one_has(store):
    """In other blocks; verified in their place, and resident from then on."""
    world = World(store)

    assert world.load(Load("r", WANTED, b"")) == (set(WANTED), [], {"r"}, set())
    assert world.step(check=WANTED).intact == set(WANTED)


def changed(store, key):
    stored = store.pages[key]
    store.pages[key] = stored._replace(payload=bytes([stored.payload[0] ^ 1]) + stored.payload[1:])


def another(store, key):
    store.pages[key] = store.pages[b"ma"]


def cut(store, key):
    store.pages[key] = store.pages[key]._replace(payload=store.pages[key].payload[:-4])


def gone(store, key):
    del store.pages[key]


@pytest.mark.parametrize(("damage", "kind"), [
    (changed, Kind.CHANGED), (another, Kind.CHANGED), (cut, Kind.ABSENT), (gone, Kind.ABSENT),
])  # fmt: skip
def test_what_is_not_what_it_must_be_is_reported_and_put_aside(store, damage, kind):
    """The request ends its waiting all the same, and computes from there: what is behind it is of no use."""
    damage(store, b"mb")

    loaded, found, brought, blocks = World(store).load(Load("r", WANTED, b""))

    assert loaded == {WANTED[0]}
    assert [(lost.page, lost.kind, lost.where) for lost in found] == [(WANTED[1], kind, Where.LOAD)]
    assert brought == {"r"}
    assert blocks == {6, 7}
    assert store.quarantined == ([b"mb"] if kind == Kind.CHANGED else [])


def test_what_was_brought_and_is_right_counts_as_used(store):
    """So that the store keeps it; not what was found wrong."""
    changed(store, b"mb")
    World(store).load(Load("r", WANTED, b""))

    assert [key for key, _ in store.used] == [b"ma"]


def test_a_copy_that_goes_wrong_on_the_way_is_found_in_its_place(store):
    """The bytes in the store are right."""
    world = World(store)
    write = world.write

    def badly(blocks, contents):
        write(blocks, contents)
        world.memory[blocks, 3] ^= 4

    world.half.exchange._write = badly
    loaded, found, _, blocks = world.load(Load("r", WANTED, b""))
    assert (loaded, len(found), blocks) == (set(), 1, {5, 6, 7})


def test_many_pages_are_brought_by_some_threads_each_to_its_block(monkeypatch):
    """A few at a time; what is wrong is found wherever it is, and what is missing leaves its block as it was."""
    monkeypatch.setattr(crew, "_cores", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(crew.os, "sched_setaffinity", lambda *_: None)
    store = stores.DictStore()
    world = World(store)
    chains = [b"%d" % block for block in range(8)]
    world.step(seal=tuple(page(block, chain, 16 * block) for block, chain in enumerate(chains)))
    world.step()
    before = world.memory.copy()
    changed(store, b"m3")
    gone(store, b"m5")
    world.memory[:] = 7
    world.half.exchange._crew, world.half.exchange._share_min = crew.Crew(3), 2

    wanted = [page(block, chain, 16 * block) for block, chain in enumerate(chains)]
    arrived = world.half.exchange.load(wanted)

    assert [one.kind for one in arrived] == [None, None, None, Kind.CHANGED, None, Kind.ABSENT, None, None]
    assert [block for block in range(8) if (world.memory[block] == before[block]).all()] == [0, 1, 2, 4, 6, 7]
    assert (world.memory[5] == 7).all()


def test_pages_of_another_model_are_not_found(store):
    """They are under other keys."""
    loaded, _, brought, _ = World(store, b"n").load(Load("r", WANTED, b""))
    assert (loaded, brought) == (set(), {"r"})


def test_a_page_is_stored_when_the_step_that_filled_it_is_known_to_be_good():
    """One step later, whatever became of its block meanwhile."""
    store = stores.DictStore()
    world = World(store)
    world.step(seal=(page(1, b"a"), page(2, b"b", 16)))
    assert not store.pages
    right = world.memory[1].tobytes()
    world.step(forget=(1,), between=lambda: world.write([1], [bytes(256)]))

    assert store.pages[b"ma"].payload == right


def test_what_was_computed_from_a_bad_page_is_not_stored_and_not_left_there():
    """It has a valid seal, and any engine would believe it."""
    store = stores.DictStore()
    world = World(store)
    world.step(seal=(page(1, b"a"), page(2, b"b", 16)))
    world.step(seal=(page(3, b"c", 32), page(4, b"d", 48)))
    world.step(forget=(2, 4), withdraw=(2, 4))

    assert sorted(store.pages) == [b"ma", b"mc"]
    assert store.quarantined == [b"mb"]


def plans(store) -> Plans:
    return Plans(Asked(store), lambda chain: b"m" + chain, 16)


def test_a_plan_begins_where_the_cache_ends_and_leaves_the_last_token(store):
    """That one is computed, for what comes after it."""
    plan, chains = plans(store), [b"a", b"b", b"c", b"d"]

    assert plan.beyond("r", chains, 64, 16) == 32
    assert plan.beyond("r", chains, 48, 16) == 16
    assert plan.load("r", [1, 5, 6], lambda block, chain, at: page(block, chain, at)) == Load(
        "r", (page(5, b"b", 16),), b"a"
    )


def test_what_is_there_and_cannot_be_loaded_is_computed_in_the_end(store):
    """Another process may have to wait before it can put it aside; who asks for it does not wait that long."""
    plans = Plans(Asked(store), lambda chain: b"m" + chain, 16)
    for _ in range(LOADS_MAX):
        assert plans.beyond("r", [b"a", b"b"], 33, 0) == 32
        plans.load("r", [1, 2], page)
    assert plans.beyond("r", [b"a", b"b"], 33, 0) == 0
    plans.drop("r")

    assert plans.beyond("r", [b"a", b"b"], 33, 0) == 32


def test_there_is_no_plan_without_pages_and_none_for_an_unknown_model(store):
    """Nor behind a gap."""
    assert plans(store).beyond("r", [b"x", b"b"], 64, 0) == 0
    assert Plans(Asked(store), lambda chain: None, 16).beyond("r", [b"a", b"b"], 64, 0) == 0
    del store.pages[b"ma"]
    assert plans(store).beyond("r", [b"a", b"b"], 64, 0) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_page_that_is_written_is_the_page_that_was_read(layout):
    """In every layout, beside its neighbours, which stay as they are."""
    rng = np.random.default_rng(0)
    group = pages([logical(rng, 4, 8, 2, 16, "float16") for _ in range(2)], layout)
    before = [group.bytes(block) for block in range(4)]

    group.write([1, 2], [before[3], memoryview(before[0])])

    assert [group.bytes(block) for block in range(4)] == [before[0], before[3], before[0], before[3]]
    for blocks, contents, why in ([1], [b"1234"], "no page"), ([1, 2], [before[0]], "not for 2 blocks"):
        with pytest.raises(ValueError, match=why):
            group.write(blocks, contents)
    assert group.bytes(1) == before[3]


@pytest.mark.parametrize("at", range(0, 64, 4))
@pytest.mark.parametrize("run_words", [1, 15, 16, 17, 48, 1024])
def test_pages_are_written_to_any_address_in_runs_of_any_length(at, run_words):
    """Whole cache lines go another way than the rest: nothing is missing, and nothing beside it is written over."""
    rng = np.random.default_rng(at)
    shape = (5, 2, run_words + 16)
    memory = rng.integers(0, 256, 64 + 4 * math.prod(shape), np.uint8)
    first = (at - memory.ctypes.data) % 64
    runs = memory[first : first + 4 * math.prod(shape)].view(np.uint32).reshape(shape)[:, :, :run_words]
    group, before, then = Pages([Part.of(runs, "block ...")]), memory.copy(), runs[3].copy()
    came = rng.integers(0, 256, 3 + group.page_bytes, np.uint8)[3:]  # wherever it begins

    group.write([3], [memoryview(came)])

    assert group.bytes(3) == came.tobytes()
    runs[3] = then
    assert (memory == before).all()


def test_what_was_planned_for_another_model_is_not_brought(store):
    """It is computed; and it is no corruption."""
    world = World(store)
    world.model.change(b"n")
    report = world.step(load=(Load("r", WANTED, b""),))

    assert (report.void, report.loaded, report.lost) == (True, frozenset(), ())
    assert world.half.brought() == {"r"}
    assert world.half.not_brought() == {page.block for page in WANTED}
    assert store.quarantined == []


def test_no_store_gets_what_was_computed_while_the_model_changed(store):
    """Nor what was filled in the step before, nor what is said to be for none."""
    world = World(store)
    world.step(seal=(page(1, b"x"),))
    world.model.change(b"n", settled=False)
    world.step(seal=(page(2, b"y"),))
    world.step(seal=(page(3, b"z"),))
    world.step()
    world.model.change(b"o", settled=True)
    world.step()
    world.step(seal=(page(4, b"v"), page(5, b"w")), unstored=frozenset({5}))
    world.step()

    assert {key for key in store.pages if key[1:] not in (b"a", b"b", b"c")} == {b"mv"}


def test_what_was_stored_since_the_weights_were_last_right_is_taken_back():
    """It was computed with others than its key says, and any engine that has the right ones would believe it."""
    store = stores.DictStore()
    world = World(store)
    world.step(seal=(page(1, b"a"),))
    world.step()
    since_s = world.half._clock()
    world.step(seal=(page(2, b"b", 16),))
    world.step(seal=(page(3, b"c", 32),))
    assert sorted(store.pages) == [b"ma", b"mb"]
    world.model.since_s = since_s
    assert world.step().void

    for thread in threading.enumerate():
        if thread.name == "holdfast-taken-back":
            thread.join(10)
    assert sorted(store.pages) == [b"ma"]
    assert store.quarantined == [b"mb", b"mc"]


def test_the_store_is_swept_from_time_to_time_without_waiting(store):
    """For the model that is served."""
    assert store.swept == [(b"m", 0)]
    World(store).step()
    assert store.swept == [(b"m", 0)] * 2


def test_pages_are_stored_and_used_under_the_session_that_was_said(store):
    """Others under that of the minute."""
    world = World(store)
    world.step(seal=(page(1, b"x"), page(2, b"y")), whose={1: Whose("alice", 3)})
    world.load(Load("r", WANTED, b"", Whose("bob", 2)))

    assert store.pages[b"mx"].manifest.session == "alice"
    assert store.pages[b"mx"].manifest.generation == 3
    assert store.pages[b"my"].manifest.session not in ("alice", "", "bob")
    assert {session for _, session in store.used} == {"bob"}
