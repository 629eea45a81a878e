"""Events are the same however their bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.traffic import sse
from loadtests.traffic.sse import EventReader, TooLong

STREAM = (
    b': hello\n\ndata: {"a":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\n\n\ndata: \xc3\xa9\r\rdata: [DONE]\n\n'
)
EVENTS = [b'{"a":1}', b"two\nlines", b"\xc3\xa9", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cuts_change_nothing(cuts):
    """Whatever the reads are, the same events come, each as soon as it is whole."""
    reader, found = EventReader(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(edges):
        found += reader.feed(STREAM[begin:end])

    assert found == EVENTS
    assert (reader.comments, reader.begun) == (1, False)


def test_what_is_begun_is_known():
    """An end inside an event is no clean end."""
    reader = EventReader()

    assert reader.feed(b"data: half") == []
    assert reader.begun


def test_an_event_without_an_end_is_not_kept_for_ever(monkeypatch):
    """Of one line, or of many."""
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 100)

    for endless in (b"x" * 101, b"data: " + b"x" * 60 + b"\n"):
        reader = EventReader()
        with pytest.raises(TooLong):
            assert [reader.feed(endless) for _ in range(3)] == []
