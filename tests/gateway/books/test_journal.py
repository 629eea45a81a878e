"""The journal keeps what it was told, says what it could not keep, and survives a torn end."""

import errno
import os
import shutil
import threading
import time

import pytest
from structlog.testing import capture_logs

from gateway.books import journal as module
from gateway.books.journal import Journal, read
from gateway.books.journal_file import FACT_BYTES_MAX


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "journal.jsonl"


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
    """The real disk, until it is told to fail or to hang.

    broken: it is full. flush_fails: the next flush does; later ones of the same pages would succeed, and mean nothing.
    """

    def __init__(self, monkeypatch):
        self.flushes = self.refused = 0
        self.broken = self.flush_fails = False
        self.written, self.cuts = [], []
        self.moving = threading.Event()
        self.moving.set()
        self._fdatasync, self._write, self._ftruncate = os.fdatasync, os.write, os.ftruncate
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "ftruncate", self.ftruncate)

    def fdatasync(self, descriptor):
        self.flushes += 1
        self.moving.wait(5)
        if self.flush_fails:
            self.flush_fails = False
            raise OSError(errno.EIO, "Input/output error")
        self._fdatasync(descriptor)

    def write(self, descriptor, data):
        if self.broken and len(data) <= 10:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append(data)
        # A disk that fills up takes a part first.
        return self._write(descriptor, data[:10] if self.broken else data)

    def ftruncate(self, descriptor, size):
        self.cuts.append(size)
        self._ftruncate(descriptor, size)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_facts_come_back_in_order_with_time_and_number(open_journal, path):
    """What is appended is read back, numbered without a hole, with the time to the microsecond."""
    journal = open_journal()

    journal.append("request.settled", {"request_id": "r1", "tokens": 7})
    journal.append("key.created", {"user": "älice\nbob"})
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

    journal.append("a", {"i": 7})

    until(lambda: len(list(read(path))) == 1)
    (fact,) = read(path)
    assert (fact["seq"], fact["kind"], fact["i"]) == (1, "a", 7)


def test_facts_share_a_flush(open_journal, path, disk):
    """A thousand facts cost a handful of flushes, but never more than 256 facts in one."""
    journal = open_journal()

    for i in range(1_000):
        journal.append("a", {"i": i})
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
    path.parent.mkdir()
    path.write_bytes(b'{"seq":1,"kind":"a"}\n{"seq":2,"kind":"b"}\n' + torn)

    journal = open_journal()
    journal.append("c")
    journal.close()

    assert [(fact["seq"], fact["kind"]) for fact in read(path)] == [(1, "a"), (2, "b"), (3, "c")]


@pytest.mark.slow
def test_a_torn_end_of_a_long_journal_is_cut_off(open_journal, path):
    """Only the tail of a long journal is searched, and its numbers still go on."""
    line = b'{"seq":%07d,"kind":"a","filler":"' + b"x" * 1_000 + b'"}\n'
    path.parent.mkdir()
    path.write_bytes(b"".join(line.replace(b":0", b":1", 1) % i for i in range(1_000_000, 1_006_000)) + b"{")

    journal = open_journal()
    journal.append("c")
    journal.close()

    assert path.read_bytes().splitlines()[-1].startswith(b'{"seq":1006000,')
    assert len(list(read(path))) == 6_001


def test_a_reader_leaves_out_an_unfinished_line(path):
    """A line that is just being written is not read yet."""
    path.parent.mkdir()
    path.write_bytes(b'{"seq":1}\n{"seq":2')

    assert list(read(path)) == [{"seq": 1}]


def test_a_reader_names_a_damaged_line(path):
    """Damage before the end is not passed over in silence."""
    path.parent.mkdir()
    path.write_bytes(b'{"seq":1}\n{"se\n{"seq":3}\n')

    with pytest.raises(ValueError, match=r"journal\.jsonl:2"):
        list(read(path))


def test_facts_wait_for_a_failing_disk(open_journal, path, disk):
    """While the disk is full facts wait; then they are all there, between whole lines, without being asked for."""
    journal = open_journal()
    journal.append("before")
    until(lambda: disk.flushes == 1)
    disk.broken = True
    journal.append("during", {"i": 1})
    until(lambda: not journal.healthy)
    journal.append("during", {"i": 2})
    disk.broken = False

    until(lambda: journal.healthy and len(list(read(path))) == 3)

    assert [(f["seq"], f["kind"], f.get("i")) for f in read(path)] == [
        (1, "before", None),
        (2, "during", 1),
        (3, "during", 2),
    ]
    assert journal.lost == 0


@pytest.mark.slow
def test_a_failing_disk_is_one_line_in_the_log(open_journal, path, disk, monkeypatch):
    """However often it is tried, a broken disk is told once, and once that it works again."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    journal = open_journal()
    with capture_logs() as log:
        disk.broken = True
        journal.append("waits")
        until(lambda: disk.refused > 10)
        disk.broken = False
        until(lambda: journal.healthy)

    assert [line["event"] for line in log] == ["journal.write_failed", "journal.written_again"]


def test_what_a_failed_flush_covered_is_written_anew(open_journal, path, disk, monkeypatch):
    """After a flush that failed, flushing again proves nothing: the facts are cut off and written once more."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    journal = open_journal()
    journal.append("before")
    until(lambda: disk.flushes == 1)
    disk.flush_fails = True

    journal.append("after")
    until(lambda: disk.flushes >= 3 and journal.healthy)

    assert [(f["seq"], f["kind"]) for f in read(path)] == [(1, "before"), (2, "after")]
    before, after, again = disk.written
    assert after == again
    assert disk.cuts == [0, len(before)]


@pytest.mark.slow
def test_a_journal_that_was_removed_is_begun_anew(open_journal, path, monkeypatch):
    """Facts are not written into a file that nobody can read any more; numbers go on."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    journal = open_journal()
    journal.append("before")
    until(lambda: len(list(read(path))) == 1)

    path.unlink()
    journal.append("after")
    until(lambda: path.exists() and list(read(path)))

    assert [(f["seq"], f["kind"]) for f in read(path)] == [(2, "after")]
    assert journal.lost == 0


def test_a_directory_that_is_gone_is_not_made_again(open_journal, path, monkeypatch):
    """A data directory that was removed makes the journal unhealthy; put back, it goes on where it was."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    journal = open_journal()
    journal.append("before")
    until(lambda: len(list(read(path))) == 1)
    shutil.copytree(path.parent, path.parent.with_name("backup"))

    shutil.rmtree(path.parent)
    journal.append("during")
    until(lambda: not journal.healthy)
    gone = not path.parent.exists()
    path.parent.with_name("backup").rename(path.parent)
    until(lambda: journal.healthy)

    assert gone
    assert [(f["seq"], f["kind"]) for f in read(path)] == [(1, "before"), (2, "during")]


def test_a_disk_that_fails_to_the_end_costs_what_waited(open_journal, disk):
    """Closing tries once more, then gives up, says how much was lost, and does not hang."""
    journal = open_journal()
    disk.broken = True
    for number in range(300):
        journal.append("never", {"filler": f"{number:020}"})
    with capture_logs() as log:
        journal.close()

    assert (journal.lost, journal.healthy) == (300, False)
    assert {"event": "journal.abandoned", "facts": 300, "log_level": "error"} in log


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


@pytest.mark.parametrize("fields", [{"seq": 1}, {"at": 2}, {"text": "x" * FACT_BYTES_MAX}, {"what": object()}])
def test_a_fact_that_cannot_be_written_is_counted_as_lost_and_holds_nobody_up(open_journal, path, fields):
    """One that would shadow the journal's own names, is as long as an answer, or no JSON, is a bug and in the log."""
    journal = open_journal()

    with capture_logs() as log:
        journal.append("a", fields)
        until(lambda: journal.lost == 1 and journal.healthy)
    journal.append("b")
    journal.close()

    assert [line["event"] for line in log] == ["journal.fact_lost"]
    assert [fact["kind"] for fact in read(path)] == ["journal.gap", "b"]
    assert journal.healthy
