"""Bytes to one client: in one write, and with every leg paused while it catches up."""

from dataclasses import dataclass, field

from gateway.stream.outbox import Outbox
from tests.gateway.stream.fakes import FakeLeg, FakeSink


@dataclass
class Fed:
    """A part with its leg."""

    leg: FakeLeg | None = field(default_factory=FakeLeg)
    held: bool = False


def test_what_gathers_goes_out_in_one_write():
    """All that was added goes out once, in order; with nothing to send nothing is written."""
    sink = FakeSink()
    out = Outbox(sink, [])
    out.add(b"a")
    out.add(b"b")
    out.flush(last=False)
    out.flush(last=False)

    assert (sink.data, sink.writes) == (b"ab", 1)


def test_what_was_cleared_is_not_sent():
    """Bytes that were forgotten never reach the client."""
    sink = FakeSink()
    out = Outbox(sink, [])
    out.add(b"a")
    out.clear()
    out.add(b"b")
    out.flush(last=False)

    assert sink.data == b"b"


def test_a_full_client_pauses_every_leg_and_room_resumes_those_not_held():
    """All legs wait for a full client, which is asked once for room; then those go on that wait for nothing else."""
    sink, parts = FakeSink(full=[1, 2]), [Fed(), Fed(held=True), Fed(leg=None)]
    out = Outbox(sink, parts)
    for _ in range(2):  # FakeSink objects to a second question
        out.add(b"a")
        out.flush(last=False)
    paused, full = [part.leg.paused for part in parts[:2]], out.full

    sink.catch_up()

    assert (paused, full) == ([True, True], True)
    assert [part.leg.paused for part in parts[:2]] == [False, True]
    assert not out.full


def test_a_client_may_be_full_again():
    """After there was room, a full client is asked for room anew, also for legs that came meanwhile."""
    sink, parts = FakeSink(full=[1, 2]), [Fed()]
    out = Outbox(sink, parts)
    out.add(b"a")
    out.flush(last=False)
    sink.catch_up()
    parts.append(Fed())
    out.add(b"b")
    out.flush(last=False)
    paused = [part.leg.paused for part in parts]
    sink.catch_up()

    assert paused == [True, True]
    assert [part.leg.paused for part in parts] == [False, False]


def test_the_last_write_pauses_nobody():
    """When nothing more will come, a full client holds up no leg."""
    sink, part = FakeSink(full=[1]), Fed()
    out = Outbox(sink, [part])
    out.add(b"a")
    out.flush(last=True)

    assert (part.leg.pauses, out.full, sink.waiting) == (0, False, [])
