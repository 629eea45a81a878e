"""Events do not depend on how their bytes arrive."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.sse import EventSplitter, EventTooLong

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
BLOCKS = st.one_of(LINES.map(lambda line: f"data: {line}"), LINES.map(lambda line: f": {line}"), st.just(""))


def split(data: bytes, cuts, limit: int = 1000) -> list[bytes]:
    """Feed bytes cut at these places."""
    splitter, events = EventSplitter(limit), []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        events += splitter.feed(data[start:end])
    return events


@given(st.lists(BLOCKS, max_size=8), st.lists(st.integers(min_value=0), max_size=8))
def test_any_chunking_gives_the_same_events(blocks, cuts):
    """However bytes are cut, the complete data events come out, in order, and comments and empty ones do not."""
    data = "".join(block + "\n\n" for block in blocks).encode()

    assert split(data, cuts) == [block.encode() for block in blocks if block.startswith("data: ")]


@pytest.mark.parametrize("cut", range(20))
def test_more_line_feeds_than_needed_change_nothing(cut):
    """An empty line too many is neither part of the event before it nor of the one after."""
    assert split(b"data: a\n\n\ndata: b\n\n\n\n", [cut]) == [b"data: a", b"data: b"]


def test_a_partial_event_waits():
    """What has no empty line yet is not given out."""
    assert split(b"data: a\n\ndata: b\n", []) == [b"data: a"]


@pytest.mark.parametrize("size", [1, 7, 50])
def test_an_event_without_an_end_is_given_up(size):
    """A peer that never ends its event is stopped at the limit, and one byte less is waited for."""
    splitter = EventSplitter(100)
    for _ in range(100 // size):
        splitter.feed(b"x" * size)

    with pytest.raises(EventTooLong):
        splitter.feed(b"x" * (size + 2))


@pytest.mark.parametrize("pieces", [
    (b"data: a\n", b"\n"), (b"data: a\n", b"", b"\n"), (b"data: ", b"a\n", b"\n"), (b"data: a", b"\n", b"\n"),
])  # fmt: skip
def test_an_end_split_between_its_line_feeds_is_seen_at_once(pieces):
    """When the two line feeds come in two reads, the event is given out with the second."""
    splitter = EventSplitter(100)
    *before, last = [splitter.feed(piece) for piece in pieces]

    assert (before, last) == ([[]] * len(before), [b"data: a"])
    assert splitter.feed(b"data: b\n\n") == [b"data: b"]


def test_a_surplus_line_feed_before_a_whole_event_does_not_swallow_it():
    """A read that begins with a line feed too many and holds one event gives that event."""
    assert split(b"data: a\n\n\ndata: b\n\n", [9]) == [b"data: a", b"data: b"]


def test_a_long_unfinished_event_is_gathered_in_linear_time():
    """A long event in many small reads is joined once, not at every read: that would copy some 30 GB here."""
    splitter, piece = EventSplitter(1 << 24), b"x" * 1023 + b"\n"
    began_s = time.process_time()
    for _ in range(8 << 10):
        assert splitter.feed(piece) == []

    assert splitter.feed(b"\n") == []  # none of ours, and over
    assert time.process_time() - began_s < 1.0
