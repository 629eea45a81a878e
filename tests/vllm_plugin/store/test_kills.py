"""kill -9 of any process that uses a store, at any moment: it stays readable, whole, and can be written."""

import random
import time

import pytest

from tests.vllm_plugin.store.pages import all_right, check_whole, key_of, page
from tests.vllm_plugin.store.processes import Mortal
from vllm_plugin.store import open_store

KILLS, AT_ONCE = 20, 2


def test_a_store_outlives_those_who_use_it(url, store):
    """Twenty processes die in the middle of it, two at a time; whoever is left reads and writes at once."""
    rng = random.Random(20)
    seen = 0
    for seed in range(0, KILLS, AT_ONCE):
        dying = [Mortal(url, seed + one) for one in range(AT_ONCE)]
        for one in dying:
            one.says("ready")
        time.sleep(rng.uniform(0.0, 0.15))
        for one in dying:
            one.kill()
        begun_s = time.monotonic()

        assert store.put([page(1000 + seed, "mine")]), f"seed {seed}"

        assert time.monotonic() - begun_s < 2.0
        assert all_right(store, [1000 + seed]) == [True]
        seen = max(seen, check_whole(store))
    assert seen > 100  # they did write
    assert store.stats().failed == 0
    store.erase_all()
    assert store._tables.env.stat()["entries"] == store._tables.COUNT


def test_a_store_outlives_all_who_use_it(url):
    """Nobody is left; the next one finds what there was, and nothing put aside."""
    rng = random.Random(21)
    for seed in range(4):
        one = Mortal(url, seed)
        one.says("ready")
        time.sleep(rng.uniform(0.02, 0.1))
        one.kill()
    opened = open_store(url)

    assert opened.stats().aside == ""
    assert check_whole(opened) > 20
    opened.close()


def test_a_store_outlives_its_makers(place):
    """Killed while they make it, or the memory for it: the next one makes it whole."""
    rng = random.Random(22)
    url = f"lmdb://{place}?size=512MiB"
    for seed in range(5):
        one = Mortal(url, seed)
        time.sleep(rng.uniform(0.05, 0.4))
        one.kill()
    opened = open_store(url)

    assert opened.put([page(1)])
    assert check_whole(opened) >= 1
    assert (place / "data.mdb").stat().st_blocks * 512 >= 512 * 2**20
    opened.close()


def test_the_lock_of_a_dead_writer_is_free(url, store):
    """It died within a transaction: that is undone, and nobody waits for it."""
    holder = Mortal(url, what="hold")
    holder.says("ready")
    holder.says("holds")
    assert not store.put([page(1)], within_s=0.1)

    holder.kill()

    assert store.put([page(2)])
    assert store.held([key_of(1), key_of(2)]) == 2


@pytest.mark.parametrize("who", ["housekeeping", "a full store"])
def test_a_dead_reader_pins_nothing(url, store, who):
    """What it read can be freed, once it is noticed: now and then, and by whoever needs the room."""
    store.put([page(1)])
    reader = Mortal(url, what="read")
    reader.says("ready")
    reader.says("reads")
    store.put([page(2)])
    store._tables.turn()
    assert store._tables.pinned()

    reader.kill()
    if who == "housekeeping":
        store._tidy()

    slots = store._tables.env.readers()
    assert (str(reader.process.pid) in slots) == (who == "a full store")
    assert not store._tables.pinned()
    assert all(store.put([page(number, f"session {number}", size=2**20)]) for number in range(10, 40))


def test_a_death_in_an_erasure_leaves_no_page_of_nobody(store, monkeypatch):
    """Somebody writes into the session meanwhile: it stays listed, so that what was written can make room."""
    store.put([page(1)])
    tables, remove, calls = store._tables, store._tables.remove, []

    class Died(Exception):
        pass

    def removed(keys):
        calls.append(keys)
        if len(calls) == 2:
            raise Died
        gone = remove(keys)
        with tables.writing() as txn:
            tables.add(txn, [page(2)], 0.0)
        return gone

    monkeypatch.setattr(tables, "remove", removed)
    with pytest.raises(Died):
        tables.erase("s")

    assert check_whole(store) == 1
    assert [(one.name, one.pages) for one in store.sessions()] == [("s", 1)]


@pytest.mark.parametrize("steps", [1])
def test_a_death_between_the_two_steps_of_a_removal(url, store, steps):
    """The page is gone already, and whoever writes next overwrites it."""
    store.put([page(1), page(2)])
    with store._tables.writing() as txn:
        store._tables.unlist(txn, key_of(1))
    assert check_whole(store) == 1

    store._tidy()

    assert check_whole(store) == 1
    assert page(1).payload not in (store._directory.data).read_bytes()
