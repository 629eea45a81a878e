"""What every page store promises. Nothing here knows which one it is; it has a retention of an hour."""

import threading
import time

import pytest

from tests.vllm_plugin.store.pages import HOUR_S, OURS, THEIRS, all_right, content, key_of, page, right
from vllm_plugin.store import Erased, Quarantine


def keys(*numbers):
    return [key_of(number) for number in numbers]


def test_what_was_put_is_read(any_store):
    """Manifest and payload come back as they were put, of any buffer."""
    first, second = page(1), page(2, session="others", size=5000)

    assert any_store.put([first, second._replace(payload=memoryview(bytearray(second.payload)))])

    with any_store.read(keys(1, 2)) as found:
        assert [one.manifest for one in found] == [first.manifest, second.manifest]
        assert [bytes(one.payload) for one in found] == [first.payload, second.payload]
        assert [one.key for one in found] == keys(1, 2)


def test_held_is_the_longest_unbroken_run(any_store):
    """A page behind a gap is of no use."""
    any_store.put([page(number) for number in (0, 1, 2, 4)])

    assert any_store.held(keys(0, 1, 2, 3, 4)) == 3
    assert any_store.held(keys(3, 4)) == 0
    assert any_store.held(keys(4)) == 1
    assert any_store.held([]) == 0


def test_a_page_that_is_not_there_reads_as_none(any_store):
    """In its place, so that the others keep theirs."""
    any_store.put([page(1)])

    with any_store.read(keys(0, 1, 2)) as found:
        assert [one is not None for one in found] == [False, True, False]


def test_what_is_there_is_not_written_again(any_store):
    """The first one stays, manifest and payload."""
    any_store.put([page(1)])

    assert any_store.put([page(1, version=1)])

    with any_store.read(keys(1)) as (found,):
        assert found.manifest.digest == page(1).manifest.digest
        assert bytes(found.payload) == content(1)
    assert (any_store.stats().put, any_store.stats().known) == (1, 1)


def test_put_soon_is_there_soon(any_store):
    """Without waiting; what is put afterwards comes after it."""
    assert any_store.put_soon([page(1)])
    assert any_store.put([page(2)])

    assert any_store.held(keys(1, 2)) == 2


def test_a_payload_is_gone_behind_its_read(any_store):
    """What lies there may be another page by then."""
    any_store.put([page(1)])
    with any_store.read(keys(1)) as (found,):
        payload = found.payload

    with pytest.raises(ValueError, match="released"):
        payload[0]


def test_an_error_in_the_block_passes_through(any_store):
    """It is the caller's, and the read ends all the same."""
    any_store.put([page(1)])

    with pytest.raises(ZeroDivisionError), any_store.read(keys(1)):
        raise ZeroDivisionError

    assert all_right(any_store, [1]) == [True]


def test_quarantine_removes_that_version_once(any_store):
    """It is counted once; a second finding of the same is no alarm."""
    any_store.put([page(1), page(2)])

    assert any_store.quarantine(key_of(1), page(1).manifest.digest) == Quarantine.REMOVED
    assert any_store.quarantine(key_of(1), page(1).manifest.digest) == Quarantine.GONE

    assert any_store.held(keys(1)) == 0
    assert any_store.held(keys(2)) == 1
    assert any_store.stats().quarantined == 1


def test_a_page_written_anew_outlives_the_quarantine_of_the_old_one(any_store):
    """A verdict that comes late is not about it."""
    old, new = page(1), page(1, version=1)
    any_store.put([old])
    any_store.quarantine(old.key, old.manifest.digest)
    any_store.put([new])

    assert any_store.quarantine(old.key, old.manifest.digest) == Quarantine.GONE

    with any_store.read(keys(1)) as (found,):
        assert found.manifest.digest == new.manifest.digest
        assert right(found)


def test_erase_takes_all_that_a_session_used(any_store):
    """Also what it shares; not what others have for themselves."""
    any_store.put([page(1, "one"), page(2, "two"), page(3, "two"), page(4, "three")])
    any_store.put([page(2, "one")])
    any_store.used_soon(keys(4), "one")

    assert any_store.erase("one") == Erased(3, sum(page(number).manifest.page_bytes for number in (1, 2, 4)))

    assert [any_store.held(keys(number)) for number in (1, 2, 3, 4)] == [0, 0, 1, 0]
    assert {(one.name, one.pages) for one in any_store.sessions()} == {("two", 1), ("three", 0)}
    assert any_store.erase("one") == Erased(0, 0)


def test_erase_all_takes_everything(any_store):
    any_store.put([page(number, f"session {number}") for number in range(40)])

    assert any_store.erase_all().pages == 40

    assert any_store.held(keys(0)) == 0
    assert any_store.sessions() == []
    assert any_store.stats().pages == 0
    assert any_store.put([page(0)])


def test_sessions_tell_who_has_what(any_store):
    """A page that two share counts for both; who was there last comes first."""
    begun_s = time.time()
    any_store.put([page(1, "one"), page(2, "one")])
    any_store.put([page(2, "a «second»\n session"), page(3, "a «second»\n session", size=100)])

    second, first = any_store.sessions()

    assert (first.name, first.pages, first.bytes) == ("one", 2, 2 * page(1).manifest.page_bytes)
    assert (second.name, second.pages) == ("a «second»\n session", 2)
    assert second.bytes == page(2).manifest.page_bytes + 100
    assert begun_s <= first.used_s <= second.used_s <= time.time()


@pytest.mark.parametrize("name", ["", "s" * 1000, "\ud800", "ü" * 127 + "a"])
def test_any_text_is_a_session(any_store, name):
    """Clients name sessions. No two are one."""
    any_store.put([page(1, name), page(2, name + "!")])

    assert any_store.erase(name).pages == 1

    assert any_store.held(keys(2)) == 1


def test_sweep_removes_old_pages_of_fingerprints_that_nobody_keeps(any_store):
    """Not young ones, and none of the caller's."""
    old, young = 2 * HOUR_S, HOUR_S / 2
    any_store.put([page(1, age_s=old), page(2, model=THEIRS, age_s=young), page(3, model=THEIRS, age_s=old)])

    assert any_store.sweep(OURS).pages == 1

    assert any_store.held(keys(1)) == 1
    assert any_store.held([key_of(2, THEIRS)]) == 1
    assert any_store.held([key_of(3, THEIRS)]) == 0
    assert any_store.stats().swept == 1


def test_sweep_keeps_what_others_keep(any_store):
    """Engines of two models may share a store."""
    any_store.put([page(1, age_s=2 * HOUR_S), page(2, model=THEIRS, age_s=2 * HOUR_S)])
    any_store.sweep(THEIRS)  # somebody of theirs is alive; nobody of ours was heard of yet

    any_store.put([page(1, age_s=2 * HOUR_S)])
    any_store.sweep(OURS)

    assert any_store.held([key_of(2, THEIRS)]) == 1
    assert any_store.held(keys(1)) == 1


def test_many_threads_use_it_at_once(any_store):
    """They see whole pages or none; and what turned to zeros under a read was removed, so that it is no alarm."""
    alarms = []

    def use(thread):
        for number in range(20):
            any_store.put([page(number, f"of {thread}", version=thread)])
            with any_store.read(keys(*range(number + 1))) as found:
                for one in found:
                    if one is not None and not right(one):
                        alarms.append(any_store.quarantine(one.key, one.manifest.digest))
            if number % 4 == thread:
                any_store.quarantine(key_of(number), page(number, version=thread).manifest.digest)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert set(alarms) <= {Quarantine.GONE}
    assert any_store.stats().failed == 0
    assert any_store.stats().pages > 0


def test_a_closed_store_has_nothing(any_store):
    """Nor does it raise."""
    any_store.put([page(1)])

    any_store.close()

    assert any_store.held(keys(1)) == 0
    assert not any_store.put([page(2)])
    assert not any_store.put_soon([page(2)])
    assert any_store.quarantine(key_of(1), page(1).manifest.digest) == Quarantine.PENDING
    assert any_store.sessions() == []
    with any_store.read(keys(1)) as found:
        assert found == [None]
