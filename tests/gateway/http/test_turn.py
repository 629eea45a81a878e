"""Writes of one turn of the event loop: all of them, in order, once, at its end or when asked for."""

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.http.turn import BYTES_MAX, Turn


class Wire:
    """A transport that keeps what it was written."""

    def __init__(self, log):
        self.log = log
        self.closing = False

    def is_closing(self):
        return self.closing

    def write(self, data):
        self.log.append(data)

    def abort(self):
        self.closing = True


@pytest.fixture
def log():
    return []


@pytest.fixture
def wire(log):
    return Wire(log)


@pytest.fixture
async def turn():
    return Turn(asyncio.get_running_loop())


async def test_what_is_written_waits_for_the_end_of_the_turn(turn, wire, log):
    """Nothing goes out at once; all of it does, in order and once, before the loop does anything else."""
    turn.write(wire, b"one")
    turn.write(wire, b"two", lambda: log.append("had two"))
    turn.write(wire, b"three")
    at_once = list(log)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert at_once == []
    assert log == [b"one", b"two", "had two", b"three"]


async def test_the_next_turn_has_an_end_of_its_own(turn, wire, log):
    """One write after another is not lost because the one before has gone out."""
    for data in (b"one", b"two"):
        turn.write(wire, data)
        await asyncio.sleep(0)

    assert log == [b"one", b"two"]


async def test_an_end_that_is_asked_for_is_the_end(turn, wire, log):
    """Who is about to close a transport has all of it sent before, and nothing is sent again."""
    turn.write(wire, b"one")
    turn.end()
    sent = list(log)
    await asyncio.sleep(0)

    assert sent == log == [b"one"]


async def test_a_closed_transport_keeps_nobody_from_theirs(turn, wire, log):
    """Its own writes and what should follow them are dropped; the others' are not."""
    gone = Wire(log)
    turn.write(gone, b"for nobody", lambda: log.append("for nobody"))
    turn.write(wire, b"one")
    gone.closing = True
    turn.end()

    assert log == [b"one"]


async def test_a_fault_is_its_client_s_alone(turn, wire, log):
    """It ends that connection, is logged, and the others have theirs all the same."""
    ill = Wire(log)
    turn.write(ill, b"one", lambda: log.append(1 / 0))
    turn.write(ill, b"more")
    turn.write(wire, b"two")
    with capture_logs() as said:
        turn.end()

    assert log == [b"one", b"two"]
    assert ill.closing
    assert [line["event"] for line in said] == ["turn.fault"]


async def test_too_much_does_not_wait(turn, wire, log):
    """What waits is bounded; and counted anew after it has gone out."""
    turn.write(wire, b"x" * BYTES_MAX)
    waited = list(log)
    turn.write(wire, b"y")
    turn.write(wire, b"z")

    assert waited == []
    assert [data[:1] for data in log] == [b"x", b"y"]


async def test_what_follows_a_write_may_write_again(turn, wire, log):
    """It is for the next turn then."""
    turn.write(wire, b"one", lambda: turn.write(wire, b"two"))
    turn.end()
    first = list(log)
    await asyncio.sleep(0)

    assert first == [b"one"]
    assert log == [b"one", b"two"]
