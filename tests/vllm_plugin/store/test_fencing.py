"""Who has lost a session without knowing writes nothing into it; the same of every store."""

import signal
import struct
import threading

import pytest

from tests.vllm_plugin.store.pages import HOUR_S, key_of, page
from tests.vllm_plugin.store.processes import Mortal
from vllm_plugin.store import GENERATION_MAX, open_store
from vllm_plugin.store.contract import FENCE_S


def written(number, session="s", generation=0):
    """A page of a session, under a generation."""
    one = page(number, session)
    return one._replace(manifest=one.manifest._replace(generation=generation))


def keys(*numbers):
    return [key_of(number) for number in numbers]


def settled(store):
    """What was given before is done."""
    assert store.put([page(99, "another")])
    return store.writing()


@pytest.mark.parametrize("highest", [1, GENERATION_MAX])
def test_a_session_that_moved_takes_nothing_under_the_generation_before(any_store, highest):
    """It is counted; what was there before stays, as does what others write."""
    any_store.put([written(1)])
    assert any_store.moved_soon("s", highest)

    assert not any_store.put([written(2, generation=highest - 1)])
    assert any_store.put([written(3, "other"), written(4, generation=highest)])

    assert [any_store.held(keys(number)) for number in (1, 2, 3, 4)] == [1, 0, 1, 1]
    assert any_store.stats().fenced == any_store.writing().fenced == 1
    assert any_store.stats().shed == 0


def test_a_page_of_a_higher_generation_moves_its_session(any_store):
    """Nobody need say so before; the manifest tells who wrote it."""
    any_store.put([written(1, generation=7)])

    assert not any_store.put([written(2, generation=6), written(3, generation=6)])

    assert any_store.stats().fenced == 2
    with any_store.read(keys(1, 2)) as (first, second):
        assert first.manifest.generation == 7
        assert second is None


def test_whoever_is_fenced_does_not_use_what_is_there_either(any_store):
    """Its session is not listed with pages that it did not write, and they are not kept for it."""
    any_store.put([written(1, "other")])
    any_store.moved_soon("s", 2)

    any_store.used_soon(keys(1), "s", 1)
    assert not any_store.put([written(1, generation=1)])
    assert [one.name for one in any_store.sessions()] == ["other"]

    any_store.used_soon(keys(1), "s", 2)
    settled(any_store)
    assert {one.name for one in any_store.sessions() if one.pages} == {"other", "s", "another"}
    assert any_store.stats().fenced == 1


def test_using_pages_moves_a_session_too(any_store):
    """A standby that has loaded them may not have written any yet."""
    any_store.put([written(1)])
    any_store.used_soon(keys(1), "s", 1)

    assert not any_store.put([written(2)])


def test_an_erasure_does_not_let_the_lost_one_in_again(any_store):
    """It would bring back what was erased. One of everything begins anew."""
    any_store.put([written(1, generation=2)])

    any_store.erase("s")
    assert not any_store.put([written(1, generation=1)])

    any_store.erase_all()
    assert any_store.put([written(1, generation=1)])


def test_a_generation_counts_for_all_who_share_the_store_and_however_they_race(any_store):
    """Of two that write at once one is fenced from the very transaction on in which the other came."""
    stale_after, moved = [], threading.Event()

    def lost():
        for number in range(1000, 1200):
            late = moved.is_set()
            if any_store.put([written(number)]) and late:
                stale_after.append(number)

    thread = threading.Thread(target=lost)
    thread.start()
    assert any_store.put([written(1, generation=1)])
    moved.set()
    thread.join(30)

    assert stale_after == []
    assert any_store.stats().fenced > 0
    assert any_store.stats().put + any_store.stats().fenced == 201


@pytest.mark.parametrize("address", ["url", "two_servers"])
def test_a_process_that_was_stopped_meanwhile_writes_nothing_when_it_goes_on(request, address):
    """Its session has moved: it is fenced from its first page on, on whatever store it is."""
    address = request.getfixturevalue(address)
    lost = Mortal(address, what="lose")
    try:
        lost.says("ready")
        lost.says("writes")
        store = open_store(address)
        for _ in range(100):
            lost.process.send_signal(signal.SIGSTOP)
            if store.put([written(1, "lost", generation=1)], within_s=1.0):
                break
            lost.process.send_signal(signal.SIGCONT)  # it was stopped while it wrote, and nobody else can
        pages = store.stats().pages
        lost.process.send_signal(signal.SIGCONT)
        lost.says("fenced")
        assert store.stats().pages == pages
        store.close()
    finally:
        lost.kill()


def test_generations_are_forgotten_after_a_day_and_never_too_many(store, monkeypatch):
    """Those that moved first, when there are more than the store may know; it stays readable."""
    tables = store._tables
    monkeypatch.setattr(tables, "_moved_max", 16)
    with tables.writing() as txn:
        for number in range(40):
            assert tables.may_write(txn, f"s{number}", 1, float(number))
        assert txn.stat(tables.moved)["entries"] <= 16
        assert not tables.may_write(txn, "s39", 0, 40.0)
        assert tables.may_write(txn, "s0", 0, 40.0)
    tables.forget_moved(39.0 + FENCE_S + HOUR_S)
    with tables.reading() as txn:
        assert txn.stat(tables.moved)["entries"] == 0


def test_a_damaged_generation_is_none(store):
    """It neither ends the writer nor fences anybody."""
    with store._tables.writing() as txn:
        txn.put(b":s", struct.pack("<I", 9), db=store._tables.moved)

    assert store.put([written(1)])
    assert store.sweep(b"fingerprint-ours") is not None
    assert store.stats().failed == 0


def test_a_server_that_missed_the_move_learns_it_with_the_next_page(redis_copies, servers):
    """And what others left there under that name is no generation."""
    redis_copies.moved_soon("s", 3)
    settled(redis_copies)
    servers[0].ask("DEL", "holdfast:pages:g::s")
    servers[0].ask("LPUSH", "holdfast:pages:g::other", "of another type")

    assert not redis_copies.put([written(number, generation=2) for number in range(20)])
    redis_copies.put([written(number, generation=3) for number in range(20, 30)])
    assert servers[0].ask("GET", "holdfast:pages:g::s") == b"3"
    assert redis_copies.put([written(40, "other")])


def test_what_waits_is_told_without_asking_anybody(any_store):
    """How many pages, and for how long the oldest."""
    before = any_store.writing()
    any_store.put([page(1), page(2)])
    any_store.put([page(1)])

    now = any_store.writing()
    assert (now.put - before.put, now.known - before.known) == (2, 1)
    assert (now.queued_pages, now.lag_s) == (0, 0.0)


def test_lag_is_that_of_the_oldest_page_that_is_not_written(store):
    """While another process writes, and after it."""
    with store._tables.writing():
        store.put_soon([page(1), page(2)])
        store.put_soon([page(3)])
        waiting = store.writing()
        assert waiting.queued_pages == 3
        assert store.writing().lag_s >= waiting.lag_s > 0
    settled(store)
    assert store.writing().queued_pages == 0
