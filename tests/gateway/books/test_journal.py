"""The journal keeps what it was told, says what it could not keep, and survives a torn end."""

import errno
import os
import threading
import time

import pytest

from gateway.books.journal import Journal, read
from gateway.books.journal_file import FACT_BYTES_MAX


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


@pytest.fixture
def open_journal(path):
    journals = []

    def opened(**options):
        journals.append(Journal(path, lambda: 1_767_268_800.1234567, **options))
        return journals[-1]

    yield opened
    for journal in journals:
        journal.close()


def until(condition, seconds=5.0):
    """Wait for the journal's thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Disk:
    """The real disk, until it is told to fail or to hang."""

    def __init__(self, monkeypatch):
        self.flushes = 0
        self.broken = False
        self.moving = threading.Event()
        self.moving.set()
        self._fdatasync, self._write = os.fdatasync, os.write
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "write", self.write)

    def fdatasync(self, descriptor):
        self.flushes += 1
        self.moving.wait(5)
        self._fdatasync(descriptor)

    def write(self, descriptor, data):
        if self.broken and len(data) <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        # A disk that fills up takes a part first.
        return self._write(descriptor, data[:10] if self.broken else data)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_facts_come_back_in_order_with_time_and_number(open_journal, path):
    """What is appended is read back, numbered without a hole, with the time to the microsecond."""
    journal = open_journal()

    journal.append("request.settled", request_id="r1", tokens=7)
    journal.append("key.created", user="älice\nbob")
    journal.close()

    assert list(read(path)) == [
        {"seq": 1, "at": 1767268800.123457, "kind": "request.settled", "request_id": "r1", "tokens": 7},
        {"seq": 2, "at": 1767268800.123457, "kind": "key.created", "user": "älice\nbob"},
    ]
    assert journal.healthy
    assert journal.lost == 0


def test_facts_are_on_disk_soon_without_being_asked(open_journal, path):
    """A single fact does not wait for company beyond the flush time."""
    journal = open_journal()

    journal.append("a")

    until(lambda: len(list(read(path))) == 1)


def test_facts_share_a_flush(open_journal, path, disk):
    """A thousand facts cost a handful of flushes, but never more than 256 facts in one."""
    journal = open_journal()

    for i in range(1_000):
        journal.append("a", i=i)
    journal.close()

    assert [fact["i"] for fact in read(path)] == list(range(1_000))
    assert 4 <= disk.flushes <= 40


def test_numbers_go_on_after_a_restart(open_journal, path):
    """A reopened journal appends to what is there and counts on."""
    for _ in range(2):
        journal = open_journal()
        journal.append("a")
        journal.close()

    assert [fact["seq"] for fact in read(path)] == [1, 2]


@pytest.mark.parametrize(
    "torn",
    [b'{"seq":3,"at":17', b'{"seq":3', b"\0" * 100, b'{"seq":3,"a\n{"seq":4}\n', b"\0\0\n", b'{"seq":3,"at":1}'],
)
def test_a_torn_end_is_cut_off(open_journal, path, torn):
    """What a crash left of a last batch is removed when the journal is opened, and nothing before it."""
    path.write_bytes(b'{"seq":1,"kind":"a"}\n{"seq":2,"kind":"b"}\n' + torn)

    journal = open_journal()
    journal.append("c")
    journal.close()

    assert [(fact["seq"], fact["kind"]) for fact in read(path)] == [(1, "a"), (2, "b"), (3, "c")]


@pytest.mark.slow
def test_a_torn_end_of_a_long_journal_is_cut_off(open_journal, path):
    """Only the tail of a long journal is searched, and its numbers still go on."""
    line = b'{"seq":%07d,"kind":"a","filler":"' + b"x" * 1_000 + b'"}\n'
    path.write_bytes(b"".join(line.replace(b":0", b":1", 1) % i for i in range(1_000_000, 1_006_000)) + b"{")

    journal = open_journal()
    journal.append("c")
    journal.close()

    assert path.read_bytes().splitlines()[-1].startswith(b'{"seq":1006000,')
    assert len(list(read(path))) == 6_001


def test_a_reader_leaves_out_an_unfinished_line(path):
    """A line that is just being written is not read yet."""
    path.write_bytes(b'{"seq":1}\n{"seq":2')

    assert list(read(path)) == [{"seq": 1}]


def test_a_reader_names_a_damaged_line(path):
    """Damage before the end is not passed over in silence."""
    path.write_bytes(b'{"seq":1}\n{"se\n{"seq":3}\n')

    with pytest.raises(ValueError, match=r"journal\.jsonl:2"):
        list(read(path))


def test_a_failing_disk_is_told_of_once_it_works_again(open_journal, path, disk):
    """While the disk is full facts are counted as lost; then a gap says how many, between whole lines."""
    journal = open_journal()
    journal.append("before")
    until(lambda: disk.flushes == 1)
    disk.broken = True
    journal.append("lost", i=1)
    journal.append("lost", i=2)
    until(lambda: journal.lost == 2)
    unhealthy = not journal.healthy
    disk.broken = False

    journal.append("after")
    until(lambda: journal.healthy)

    assert unhealthy
    assert [(f["seq"], f["kind"]) for f in read(path)] == [(1, "before"), (2, "journal.gap"), (3, "after")]
    assert [fact.get("lost") for fact in read(path)] == [None, 2, None]
    assert journal.lost == 2


@pytest.mark.slow
def test_a_journal_recovers_without_new_facts(open_journal, path, disk):
    """A journal that is not asked again, because it is unhealthy, tries on its own."""
    journal = open_journal()
    disk.broken = True
    journal.append("lost")
    until(lambda: not journal.healthy)

    disk.broken = False
    until(lambda: journal.healthy)

    assert [fact["kind"] for fact in read(path)] == ["journal.gap"]


def test_a_full_queue_loses_facts_but_never_blocks(open_journal, path, disk):
    """When the disk hangs, appending goes on at once; what does not fit is counted and told of."""
    journal = open_journal(facts_max=10, flush_s=0.0)
    disk.moving.clear()
    journal.append("first")
    until(lambda: disk.flushes == 1)

    begin_s = time.monotonic()
    for _ in range(15):
        journal.append("more")
    took_s = time.monotonic() - begin_s
    at_worst = (journal.lost, journal.healthy)
    disk.moving.set()
    until(lambda: journal.healthy)

    assert took_s < 1
    assert at_worst == (5, False)
    assert [fact["kind"] for fact in read(path)] == ["first", "journal.gap", *["more"] * 10]


def test_facts_after_the_end_are_counted_as_lost(open_journal):
    """A closed journal takes nothing and says so; closing twice is no error."""
    journal = open_journal()
    journal.close()
    journal.close()

    journal.append("late")

    assert (journal.lost, journal.healthy) == (1, False)


@pytest.mark.parametrize("fields", [{"seq": 1}, {"at": 2}, {"text": "x" * FACT_BYTES_MAX}])
def test_a_fact_is_small_and_leaves_the_journal_s_own_names_alone(open_journal, fields):
    """A fact that would shadow its number or time, or is as long as an answer, is a bug."""
    journal = open_journal()

    with pytest.raises(AssertionError):
        journal.append("a", **fields)
