"""An alert is kept once, over restarts too."""

import pytest

from gateway.books import alert_book
from gateway.books.alert_book import UNSENT_S_MAX, AlertBook
from guards.refusal import Reason, Refused


class Clock:
    now_s = 1e9

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    return AlertBook(tmp_path / "alerts.sqlite3", clock, heard=True)


def again(book, tmp_path, clock, **more):
    book.close()
    return AlertBook(tmp_path / "alerts.sqlite3", clock, **{"heard": True} | more)


def test_the_same_alert_is_first_once(book, tmp_path, clock):
    """Also after a restart."""
    assert [book.first("a", b"1"), book.first("a", b"2"), book.first("b", b"3")] == [True, False, True]

    book = again(book, tmp_path, clock)
    assert [book.first("a", b"4"), book.first("c", b"5")] == [False, True]


def test_what_was_not_heard_is_sent_after_a_restart(book, tmp_path, clock):
    """In its order, and as it was; not what is older than a day."""
    for name in "xabc":
        book.first(name, name.encode())
        clock.now_s += 1 if name != "x" else UNSENT_S_MAX
    book.sent("b")

    assert [tuple(one) for one in again(book, tmp_path, clock).unsent()] == [("a", b"a"), ("c", b"c")]


def test_where_there_is_no_receiver_nothing_waits_for_one(book, tmp_path, clock):
    """One that is configured later does not hear of the past."""
    book = again(book, tmp_path, clock, heard=False)
    book.first("a", b"1")

    assert again(book, tmp_path, clock).unsent() == []


def test_rows_are_bounded(book, clock, monkeypatch):
    """The oldest go first."""
    monkeypatch.setattr(alert_book, "ROWS_MAX", 5)
    monkeypatch.setattr(alert_book, "PRUNE_EVERY", 10)
    for number in range(10):
        clock.now_s += 1
        book.first(str(number), b"")

    assert [one.alert_id for one in book.unsent()] == ["4", "5", "6", "7", "8", "9"]


def test_a_book_that_cannot_be_written_is_no_reason_for_silence(book):
    """What cannot be remembered is told."""
    book.close()

    assert book.first("a", b"1")
    book.sent("a")


def test_a_book_that_cannot_be_opened_is_named(tmp_path, clock):
    """At the start, where somebody reads it."""
    (tmp_path / "alerts.sqlite3").write_bytes(b"no database at all, but long enough to be looked at" * 100)

    with pytest.raises(Refused, match=r"alerts\.sqlite3") as caught:
        AlertBook(tmp_path / "alerts.sqlite3", clock, heard=True)

    assert caught.value.reason is Reason.BOOKS
