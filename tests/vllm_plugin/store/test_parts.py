"""The store's pure parts: addresses, entries; and its writer."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vllm_plugin.store.pages import page
from vllm_plugin.store import StoreRefused, address, open_store
from vllm_plugin.store.entries import decoded, encoded, session_key
from vllm_plugin.store.tables import _after
from vllm_plugin.store.writer import Writer

ONE = page(1)
STORED = encoded(ONE.key, ONE.manifest, 7)


def test_an_address_is_read():
    read = address.read("lmdb:///dev/shm/a%20b?size=1.5GiB&retention=30m&queue=64MiB")

    assert (str(read.directory), read.size_bytes) == ("/dev/shm/a b", 1536 * 2**20)
    assert (read.retention_s, read.queue_bytes) == (1800, 64 * 2**20)
    assert address.read("lmdb:///dev/shm/holdfast") == address.Address(address.Path("/dev/shm/holdfast"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://host", "lmdb://"),
        ("lmdb://dev/shm/holdfast", "absolute path"),
        ("lmdb://", "absolute path"),
        ("lmdb:///dev/shm/x?sise=1GiB", "no option sise; there are size, retention, queue"),
        ("lmdb:///dev/shm/x?size=", "write size=8GiB"),
        ("lmdb:///dev/shm/x?size=1MiB", "at least 8388608"),
        ("lmdb:///dev/shm/x?size=-8GiB", "write size=8GiB"),
        ("lmdb:///dev/shm/x?size=8parsecs", "write size=8GiB"),
        ("lmdb:///dev/shm/x?retention=soon", "write retention=1h"),
        ("lmdb:///dev/shm/x?retention=0", "at least 1"),
    ],
)
def test_a_wrong_address_is_told(url, told):
    """With what to write instead."""
    with pytest.raises(StoreRefused, match=told):
        open_store(url)


def test_an_entry_comes_back():
    assert decoded(ONE.key, STORED) == (ONE.manifest, 7)
    assert decoded(ONE.key, memoryview(STORED)) == (ONE.manifest, 7)


def test_any_wrong_bit_of_an_entry_is_found():
    """It reads as absent; nothing is raised."""
    for bit in range(8 * len(STORED)):
        changed = bytearray(STORED)
        changed[bit // 8] ^= 1 << bit % 8
        assert decoded(ONE.key, bytes(changed)) is None


@given(st.binary(max_size=200))
def test_any_bytes_read_as_absent(stored):
    assert decoded(ONE.key, stored) is None


def test_an_entry_of_another_key_is_none():
    """It may have been misplaced by whoever wrote it; and cut."""
    assert decoded(page(2).key, STORED) is None
    assert all(decoded(ONE.key, STORED[:length]) is None for length in range(len(STORED)))


@given(st.text(), st.text())
def test_each_session_has_its_own_key(one, other):
    assert (session_key(one) == session_key(other)) == (one == other)
    assert 0 < len(session_key(one * 300)) <= 255


@given(st.binary(min_size=1, max_size=4), st.binary(max_size=6))
def test_the_key_behind_a_prefix(prefix, key):
    """It is above all that begin so, and above nothing else that is not below."""
    end = _after(prefix)
    if key.startswith(prefix):
        assert not end or key < end
    elif key > prefix:
        assert end
        assert key >= end


class Gate:
    """A job that waits."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.go.wait(5)


def test_what_is_urgent_goes_first_and_is_never_shed():
    order, gate = [], Gate()
    writer = Writer(10_000, lambda: None, 60)
    writer.submit(gate)
    gate.begun.wait(5)

    assert writer.submit(lambda: order.append("waits"), 1000)
    assert writer.submit(lambda: order.append("too much"), 5000) is None
    assert writer.submit(lambda: order.append("urgent"), 5000, urgent=True)
    gate.go.set()

    assert writer.close(5)
    assert order == ["urgent", "waits"]


def test_a_job_larger_than_the_queue_is_taken_where_nothing_waits():
    """Else it would never be written."""
    writer = Writer(10_000, lambda: None, 60)

    assert writer.submit(lambda: 7, 10**9).result(5) == 7

    assert writer.close(5)


def test_a_job_that_fails_fails_alone():
    """So does housekeeping."""
    told = threading.Event()

    def idle():
        told.set()
        raise RuntimeError("housekeeping")

    writer = Writer(10_000, idle, 0.01)
    with pytest.raises(ZeroDivisionError):
        writer.submit(lambda: 1 / 0).result(5)
    assert told.wait(5)

    assert writer.submit(lambda: 7).result(5) == 7
    assert writer.waiting_bytes == 0
    assert writer.close(5)


def test_the_end_waits_for_what_waits_and_not_for_ever():
    gate = Gate()
    writer = Writer(10_000, lambda: None, 60)
    writer.submit(gate)
    answer = writer.submit(lambda: 7)

    assert not writer.close(0.1)

    assert answer.cancelled()
    assert writer.submit(lambda: 7) is None
    gate.go.set()
