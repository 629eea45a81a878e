"""A store in shared memory: what goes when it is full or old, who waits for whom, what is overwritten."""

import os
import time

import lmdb
import numpy as np
import pytest

from tests.vllm_plugin.store.pages import HOUR_S, all_right, check_whole, key_of, page
from tests.vllm_plugin.store.processes import Mortal
from vllm_plugin.store import READ_S_MAX, Quarantine, StoreBusy, StoreRefused, address, open_store
from vllm_plugin.store.lmdb import LmdbStore

MIB = 2**20
LARGE = MIB  # bytes of a page: of 16, a store here has room for 15


class Clock:
    now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(url, clock):
    """A store with a clock that does not go by itself."""
    opened = LmdbStore(address.read(url), populate=False, make=True, clock=clock)
    yield opened
    opened.close()


def large(number, session="s"):
    return page(number, session, size=LARGE)


def there(store, *numbers):
    return [store.held([key_of(number)]) for number in numbers]


def test_the_sessions_used_longest_ago_make_room(timed, clock):
    """Their last pages first, since those in front are of use without them."""
    for session in range(3):
        clock.now_s += 1
        timed.put([large(10 * session + number, f"session {session}") for number in range(5)])
    clock.now_s += 1
    timed.used_soon([key_of(0)], "session 0")

    assert timed.put([large(100, "new")])

    assert there(timed, *range(5)) == [1] * 5
    assert there(timed, 10, 11, 12, 13, 14) == [1, 1, 1, 0, 0]  # one, and some slack
    assert there(timed, *range(20, 25), 100) == [1] * 6
    assert timed.stats().evicted == 2
    check_whole(timed)


def test_what_others_use_too_makes_no_room(timed, clock):
    """A shared page goes with the last session that uses it."""
    timed.put([large(number, "old") for number in range(8)])
    clock.now_s += 1
    timed.put([large(0, "young"), large(7, "young"), *(large(number, "young") for number in range(20, 26))])

    assert timed.put([large(100, "new"), large(101, "new")])

    assert there(timed, 0, 7) == [1, 1]
    assert there(timed, 5, 6) == [0, 0]


def test_a_session_larger_than_the_store_keeps_what_it_began_with(timed):
    """What is too much is shed and counted; its own pages are not evicted for it."""
    timed.put([large(50, "other")])

    assert not timed.put([large(number) for number in range(30)])

    stats = timed.stats()
    assert stats.put - 1 + stats.shed == 30
    assert timed.held([key_of(number) for number in range(30)]) >= 12
    assert there(timed, 50) == [0]
    assert stats.failed == 0


def test_a_page_larger_than_the_store_evicts_nobody(timed):
    timed.put([large(1)])

    assert not timed.put([page(2, "other", size=17 * MIB)])

    assert there(timed, 1) == [1]
    assert timed.stats().shed == 1


def test_a_store_stays_of_use_through_any_churn(timed, clock):
    """Pages of many sizes come and go, ten times the store; most of it is full all the time, and nothing fails."""
    rng = np.random.default_rng(5)
    shed = 0
    for number in range(1200):
        clock.now_s += 1
        size = int(rng.choice([5000, 70_000, 262_144]))
        shed += not timed.put([page(number, f"session {number // 5}", size=size)])
    stats = timed.stats()

    assert shed == 0
    assert stats.failed == 0
    assert stats.bytes > 0.8 * stats.size_bytes
    check_whole(timed)


def test_what_nobody_used_for_the_retention_goes(timed, clock):
    """By itself, a session at a time; what a living one uses stays."""
    timed.put([page(1, "old"), page(2, "old")])
    clock.now_s += HOUR_S / 2
    timed.put([page(2, "young")])
    clock.now_s += HOUR_S / 2 + 1

    timed._tidy()

    assert there(timed, 1, 2) == [0, 1]
    assert [one.name for one in timed.sessions()] == ["young"]


@pytest.mark.parametrize("how", ["erase", "erase_all", "quarantine", "evict", "sweep", "forget"])
def test_what_goes_is_overwritten(timed, clock, how):
    """However it goes: its bytes are nowhere in the file any more."""
    one = page(1, "one", age_s=time.time())  # written in 1970
    timed.put([one])
    data = timed._directory.data
    assert one.payload in data.read_bytes()
    clock.now_s += 1

    if how == "evict":
        timed.put([large(number, "more") for number in range(10, 26)])
    elif how == "forget":
        clock.now_s += 2 * HOUR_S
        timed._tidy()
    elif how == "quarantine":
        timed.quarantine(one.key, one.manifest.digest)
    else:
        {"erase": timed.erase, "sweep": timed.sweep, "erase_all": lambda _: timed.erase_all()}[how](
            {"erase": "one", "sweep": b"another model"}.get(how)
        )

    assert there(timed, 1) == [0]
    assert one.payload[:64] not in data.read_bytes()


def test_a_put_never_waits_for_another_process(url):
    """That holds the lock for ever: what waits is bounded, and the rest is shed. The end is bounded as well."""
    store = open_store(f"{url}&queue=2MiB")
    store.put([page(1)])
    holder = Mortal(url, what="hold")
    holder.says("ready")
    holder.says("holds")
    begun_s = time.monotonic()

    accepted = [store.put_soon([page(number)]) for number in range(2, 102)]

    assert time.monotonic() - begun_s < 0.5
    assert 40 <= sum(accepted) <= 64
    assert store.stats().shed == accepted.count(False)
    assert store.stats().queued_bytes <= 2 * MIB + 2 * 4096
    assert all_right(store, [1]) == [True]
    with pytest.raises(StoreBusy):
        store.erase("somebody else", within_s=0.1)
    holder.kill()
    store.close()  # writes what was accepted

    store = open_store(url)
    assert there(store, *range(1, 102)) == [1, *accepted]
    store.close()


def test_quarantine_goes_before_what_waits_and_holds_at_once(url):
    """In this process nobody finds the page, though it cannot be removed yet; later it is, and its like may come."""
    store = open_store(f"{url}&queue=1MiB")
    one = page(1)
    store.put([one])
    holder = Mortal(url, what="hold")
    holder.says("ready")
    holder.says("holds")
    while store.put_soon([page(2)]):
        pass  # until no more may wait
    begun_s = time.monotonic()

    assert store.quarantine(one.key, one.manifest.digest) == Quarantine.PENDING

    assert time.monotonic() - begun_s < 1.0
    assert store.held([one.key]) == 0
    assert all_right(store, [1]) == [False]
    holder.kill()
    while store.stats().queued_bytes and time.monotonic() - begun_s < 5.0:
        time.sleep(0.01)
    assert store.stats().quarantined == 1
    assert store.put([one])
    assert all_right(store, [1, 2]) == [True, True]
    store.close()


def test_what_waits_to_be_put_does_not_come_back_behind_its_quarantine(timed):
    """The quarantine goes first: the page would be written after it, and stay. What is put later is another matter."""
    one, other = page(1), page(2)
    with timed._tables.writing():  # the writer's thread is kept waiting
        timed.put_soon([page(0)])
        timed.put_soon([one, other])
        assert timed.quarantine(one.key, one.manifest.digest) == Quarantine.PENDING
    timed.put([page(3)])

    assert there(timed, 0, 1, 2, 3) == [1, 0, 1, 1]
    assert timed._queue._waiting == {}
    assert timed.put([one])
    assert there(timed, 1) == [1]


def test_a_quarantine_that_failed_is_made_up_for(timed, monkeypatch):
    """Until then the page is not to be found."""
    one = page(1)
    timed.put([one])

    def full(*_):
        raise lmdb.MapFullError("no room")

    monkeypatch.setattr(timed._writes, "quarantine", full)
    assert timed.quarantine(one.key, one.manifest.digest) == Quarantine.PENDING
    assert there(timed, 1) == [0]
    monkeypatch.undo()

    timed._tidy()

    assert timed.stats().quarantined == 1
    assert timed.put([one])
    assert there(timed, 1) == [1]


def test_the_end_is_bounded_and_sheds_what_is_not_written(url):
    """Where another process holds the lock, this one ends all the same."""
    store = open_store(url)
    holder = Mortal(url, what="hold")
    holder.says("ready")
    holder.says("holds")
    store.put_soon([page(1)])
    store.put_soon([page(2)])
    begun_s = time.monotonic()

    store.close(within_s=0.3)

    assert time.monotonic() - begun_s < 1.0
    assert store.stats().shed >= 1
    with pytest.raises(StoreRefused, match="must end first"):
        open_store(url)
    holder.kill()
    time.sleep(0.2)  # for the thread that waited, so that its file may go


def test_the_start_is_bounded_as_well(url, store, monkeypatch):
    """LMDB takes the lock to open its tables. Whoever holds it is told of, and the next try is a new one."""
    monkeypatch.setattr("vllm_plugin.store.lmdb.OPEN_S_MAX", 0.1)
    store.close()
    holder = Mortal(url, what="hold")
    holder.says("ready")
    holder.says("holds")

    begun_s = time.monotonic()

    with pytest.raises(StoreRefused, match="another process has held the lock"):
        open_store(url)

    assert time.monotonic() - begun_s < 1.0
    holder.kill()
    time.sleep(0.2)
    monkeypatch.undo()
    again = open_store(url)
    assert again.put([page(1)])
    again.close()


def test_closing_writes_what_waits(url):
    store = open_store(url)
    for number in range(100):
        store.put_soon([page(number)])

    store.close()

    store = open_store(url)
    assert store.held([key_of(number) for number in range(100)]) == 100
    store.close()


def test_an_open_read_costs_room_and_nothing_else(timed, clock):
    """What it sees stays; puts that need its room are shed in bounded time; behind it they are not."""
    timed.put([large(number, "old") for number in range(14)])
    clock.now_s += 1
    begun_s = time.monotonic()

    with timed.read([key_of(0)]) as (found,):
        puts = [timed.put([large(100 + number, "new")]) for number in range(4)]
        assert bytes(found.payload[:64]) in (large(0).payload[:64], bytes(64))

    assert puts == [True, False, False, False]
    assert time.monotonic() - begun_s < 8.0
    assert (timed.stats().shed, timed.stats().failed) == (3, 0)
    assert timed.stats().evicted == 2  # and not more, in vain
    assert timed.put([large(200, "new")])
    check_whole(timed)


def test_a_read_that_is_open_for_too_long_is_ended(timed):
    """Its memory can still be looked at, and does not keep the store from being written."""
    timed.put([large(number, "old") for number in range(14)])
    timed._reads._clock = lambda: time.monotonic() + READ_S_MAX + 1

    with timed.read([key_of(0)]) as (found,):
        timed._reads._clock = lambda: time.monotonic() + 2 * READ_S_MAX + 2
        timed._tidy()
        assert timed.put([large(100 + number, "new") for number in range(10)])
        assert len(bytes(found.payload)) == LARGE

    assert timed.stats().overdue == 1
    assert all_right(timed, [100]) == [True]


def test_what_still_looks_at_a_payload_is_told(url):
    """The map stays for it: a look behind the end would kill the process."""
    store = open_store(url)
    store.put([page(1)])

    with pytest.raises(BufferError, match="copy"), store.read([key_of(1)]) as (found,):
        left = np.frombuffer(found.payload, np.uint8)
    store.close()

    assert left[0] == page(1).payload[0]
    with pytest.raises(StoreRefused, match="must end first"):
        open_store(url)


def test_one_directory_is_one_store_in_a_process(url, place):
    """LMDB must not be opened twice in one: both halves of a connector may be there. The last one closes it."""
    first, second = open_store(url), open_store(f"lmdb://{place.parent}/../{place.parent.name}/{place.name}")
    assert first is second

    first.close()
    assert second.put([page(1)])

    second.close()
    assert not second.put([page(2)])
    third = open_store(url)
    assert there(third, 1, 2) == [1, 0]
    third.close()


def test_a_forked_process_is_refused(url):
    """What it inherited is its parent's, and LMDB lets nobody open that anew. The parent does not notice."""
    store = open_store(url)
    store.put([page(1)])
    child = os.fork()
    if not child:
        try:
            open_store(url)
        except StoreRefused as refused:
            os._exit(0 if "forked" in str(refused) else 1)
        finally:
            os._exit(2)

    assert os.waitpid(child, 0)[1] == 0
    assert store.put([page(2)])
    assert all_right(store, [1, 2]) == [True, True]
    store.close()


def test_the_map_is_at_hand_before_it_is_needed(url):
    """The progress is told; without being asked for it is not done."""
    store = open_store(url)
    deadline_s = time.monotonic() + 10
    while store.stats().populated_bytes < 16 * MIB and time.monotonic() < deadline_s:
        time.sleep(0.01)

    assert store.stats().populated_bytes == 16 * MIB
    store.close()
    store = open_store(url, populate=False)
    assert store.stats().populated_bytes == 0
    store.close()
