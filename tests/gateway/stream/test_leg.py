"""One attempt's silence: from when on it is suspicious, and when it ends the leg. Time is played by hand."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gateway.stream.leg import LOOK_AGAIN_S, Leg, Target, UpstreamLimits
from gateway.stream.leg_end import Cause
from gateway.stream.silences import Silences

FIRST_S, BETWEEN_S = 60.0, 10.0
EVENT = b'data: {"a":1}\n\n'


class Timer:
    """A call that is to be made at a time, unless it is cancelled."""

    def __init__(self, at_s: float, act: Callable[[], None]) -> None:
        self.at_s, self.act = at_s, act
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The part of an event loop that a leg uses."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[Timer] = []
        self._loop = asyncio.new_event_loop()

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, act: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now_s + delay_s, act))
        return self.timers[-1]

    def create_future(self) -> "asyncio.Future[Any]":
        return self._loop.create_future()

    @property
    def waiting(self) -> list[Timer]:
        self.timers = [one for one in self.timers if not one.cancelled]
        return self.timers

    def run(self, seconds: float) -> None:
        """Let time pass, each timer at its own."""
        end_s = self.now_s + seconds
        while (due := min(self.waiting, key=lambda one: one.at_s, default=None)) is not None and due.at_s <= end_s:
            self.now_s = max(self.now_s, due.at_s)
            self.timers.remove(due)
            due.act()
        self.now_s = end_s

    def freeze(self, seconds: float) -> None:
        """This process does not run for so long; then whatever is due is called late, once."""
        self.now_s += seconds
        for late in [one for one in self.waiting if one.at_s <= self.now_s]:
            self.timers.remove(late)
            late.act()

    def close(self) -> None:
        self._loop.close()


class Watch:
    """A watch that notes what it is told. Patience is set by the test."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._begun_s = clock, clock.now_s
        self.patience_s = 1.0
        self.gaps: list[float] = []
        self.silences: list[float] = []
        self.ends = 0

    def token(self, after_s: float) -> None:
        assert self.ends == 0
        self.gaps.append(round(after_s, 6))

    def silence(self) -> None:
        assert self.ends == 0
        self.silences.append(round(self._clock.now_s - self._begun_s, 6))

    def over(self) -> None:
        self.ends += 1


class Desk:
    """A leg with all around it; what it reads counts as tokens, unless the test says otherwise."""

    def __init__(self, *, watched: bool = True, stream: bool = True, **target: float) -> None:
        self.clock = Clock()
        self.loop: Any = self.clock
        self.limits = UpstreamLimits(first_token_s=FIRST_S, between_tokens_s=BETWEEN_S)
        self.silences = Silences(self.loop)
        self.watch = Watch(self.clock)
        self.tokens = True
        self.released_legs: list[Leg] = []
        at = Target("one", "127.0.0.1", 1, **target)
        self.leg = Leg(self, at, b"", self if stream else None, self.watch if watched else None)

    def released(self, leg: Leg) -> None:
        self.released_legs.append(leg)

    def events(self, raws: Sequence[bytes]) -> None:
        for _ in raws:
            if self.tokens:
                self.leg.progress()

    def read(self, data: bytes = EVENT, after_s: float = 0.5) -> None:
        """Time passes, and bytes come."""
        self.clock.run(after_s)
        if not self.leg.streaming:
            self.leg.begin(200, b"text/event-stream")
        self.leg.data(data)

    @property
    def cause(self) -> Cause | None:
        return self.leg.ended.result().cause if self.leg.ended.done() else None


@pytest.fixture
def desk():
    one = Desk()
    yield one
    one.clock.close()


def test_a_silence_is_told_once_it_lasts_longer_than_is_usual(desk):
    """Not before; it is looked at twice, and the leg stays."""
    desk.clock.run(1.0 + LOOK_AGAIN_S / 2)
    early = list(desk.watch.silences)
    desk.clock.run(LOOK_AGAIN_S)

    assert early == []
    assert desk.watch.silences == [1.0 + LOOK_AGAIN_S]
    assert desk.cause is None


def test_a_silence_that_goes_on_is_told_again(desk):
    """Each time that patience runs out: who could do nothing the first time may be able to now."""
    desk.read(after_s=0.5)
    desk.clock.run(4.0)

    assert desk.watch.silences == [0.5 + 1.0 + LOOK_AGAIN_S + times for times in (0, 1, 2)]


def test_tokens_on_time_are_no_silence(desk):
    """Gaps just below patience are noted and never told, however many."""
    for _ in range(50):
        desk.read(after_s=0.99)

    assert desk.watch.silences == []
    assert desk.watch.gaps == [0.99] * 50


def test_each_silence_is_found_anew(desk):
    """After a token the count begins again, and again the silence is looked at twice."""
    desk.read()
    desk.clock.run(1.5)
    desk.read(after_s=0.0)
    desk.clock.run(1.0 + LOOK_AGAIN_S / 2)
    before = len(desk.watch.silences)
    desk.clock.run(1.0)

    assert (before, len(desk.watch.silences)) == (1, 2)


@pytest.mark.parametrize("frozen_s", [1.5, 5.0, 30.0, 3600.0])
@pytest.mark.parametrize("begun", [False, True])
def test_a_process_that_was_frozen_itself_suspects_nobody(desk, frozen_s, begun):
    """A timer that comes late says nothing: tokens may wait in a socket that nobody read. They come, and all is well.

    Not even beyond the hard limits: those are looked at twice just so.
    """
    if begun:
        desk.read(after_s=0.3)
    desk.clock.freeze(frozen_s)
    desk.read(after_s=LOOK_AGAIN_S / 2)
    desk.clock.run(0.9)

    assert desk.watch.silences == []
    assert desk.cause is None


def test_a_server_that_is_silent_after_we_were_frozen_is_found(desk):
    """The second look does not have to wait for all of a new patience."""
    desk.read()
    desk.clock.freeze(3.0)
    desk.clock.run(LOOK_AGAIN_S)

    assert len(desk.watch.silences) == 1


@pytest.mark.parametrize("again", [0.3, 0.9])
def test_the_second_look_is_for_one_silence_only(desk, again):
    """A doubt that a token has settled does not shorten the next one."""
    desk.read()
    desk.read(after_s=1.0 + LOOK_AGAIN_S / 2)  # doubted
    desk.read(after_s=again)
    desk.clock.freeze(1.5)

    assert desk.watch.silences == []


@pytest.mark.parametrize("data", [b": keep-alive\n\n", EVENT], ids=["comments", "events without tokens"])
def test_what_brings_no_token_is_silence(desk, data):
    """Comments, role chunks and usage keep no leg alive."""
    desk.read()
    desk.tokens = False
    for _ in range(11):
        desk.read(data, after_s=0.1)

    assert len(desk.watch.silences) == 1
    desk.clock.run(BETWEEN_S)
    assert desk.cause is Cause.SILENT


def test_a_model_says_how_patient_its_legs_are():
    """Instead of what holds for all, before the first token and between two; each end says which limit it was."""
    never = Desk(first_token_s=3 * FIRST_S)
    never.clock.run(3 * FIRST_S - 1)
    early = never.cause
    never.clock.run(1 + LOOK_AGAIN_S)
    stopped = Desk(between_tokens_s=BETWEEN_S / 2)
    stopped.read()
    stopped.clock.run(BETWEEN_S / 2 + LOOK_AGAIN_S)

    assert (early, never.cause, stopped.cause) == (None, Cause.SILENT, Cause.SILENT)
    assert never.leg.ended.result().detail == f"no first token arrived within {3 * FIRST_S:g} s"
    assert stopped.leg.ended.result().detail == f"no token arrived within {BETWEEN_S / 2:g} s"
    never.clock.close()
    stopped.clock.close()


def test_a_head_is_silence(desk):
    """A server that answers 200 and then nothing is found as one that says nothing at all."""
    desk.clock.run(0.9)
    desk.leg.begin(200, b"text/event-stream")
    desk.clock.run(0.2)

    assert desk.watch.silences == [1.0 + LOOK_AGAIN_S]


def test_tokens_of_one_read_count_once(desk):
    """Several events in one read are one gap: those between them are none of the server's."""
    desk.read(EVENT * 3, after_s=0.5)
    desk.read(EVENT * 2, after_s=0.25)

    assert desk.watch.gaps == [0.5, 0.25]


@pytest.mark.parametrize("begun", [False, True])
def test_a_leg_that_waits_for_us_is_not_silent(desk, begun):
    """Paused for a slow client or for a lease, for however long: neither suspicious nor at its end."""
    if begun:
        desk.read()
    desk.leg.pause()
    desk.clock.run(3 * FIRST_S)
    desk.leg.resume()
    desk.clock.run(0.9)

    assert desk.watch.silences == []
    assert desk.cause is None

    desk.clock.run(0.1 + LOOK_AGAIN_S)
    assert len(desk.watch.silences) == 1, "what it waits for after that is the server's again"


def test_time_spent_waiting_for_us_is_no_gap(desk):
    """What is usual at a server is not learnt from slow clients and books."""
    desk.read()
    desk.clock.run(0.1)
    desk.leg.pause()
    desk.clock.run(20.0)
    desk.leg.resume()
    desk.read(after_s=0.2)

    assert desk.watch.gaps == [0.5, 0.2]


@pytest.mark.parametrize("counted", [False, True])
def test_tokens_that_waited_for_a_lease_are_no_gap(desk, counted):
    """Events that no lease covered are taken in again, before the leg is resumed: they came when they were read."""
    desk.tokens = counted  # else their prompt was not even covered
    desk.read(after_s=0.1)
    desk.tokens = True
    desk.leg.pause()
    desk.clock.run(10.0)
    desk.leg.pause()  # the client is slow as well
    desk.clock.run(10.0)
    desk.leg.progress()  # the very same tokens, covered now
    desk.leg.resume()
    desk.read(after_s=0.2)

    assert desk.watch.gaps == [0.1, 0.2]


@pytest.mark.parametrize(("begun", "limit_s"), [(False, FIRST_S), (True, BETWEEN_S)])
@pytest.mark.parametrize("patience_s", [0.25, 1.0, 7.0, 500.0])
@pytest.mark.parametrize("watched", [True, False])
def test_the_hard_limits_end_it(begun, limit_s, patience_s, watched):
    """However patient one has become with a server, and whether anybody watches: silence ends at its limit."""
    desk = Desk(watched=watched)
    desk.watch.patience_s = patience_s
    if begun:
        desk.read()
    desk.clock.run(limit_s - 0.01)
    before = desk.cause
    desk.clock.run(0.01 + 2 * LOOK_AGAIN_S)

    assert before is None
    assert desk.cause is Cause.SILENT
    assert f"within {limit_s:g} s" in desk.leg.ended.result().detail
    assert bool(desk.watch.silences) == (watched and patience_s < limit_s)
    desk.clock.close()


def test_a_plain_answer_is_silent_to_its_end():
    """It has no tokens on the way, so no silence is suspicious; who asked bounds its time."""
    desk = Desk(stream=False)
    desk.clock.run(10 * FIRST_S)

    assert desk.clock.waiting == []
    assert (desk.watch.silences, desk.cause) == ([], None)
    desk.clock.close()


@pytest.mark.parametrize("how", ["close", "fault", "too late", "complete"])
def test_whatever_ends_it_the_watch_is_told_once_and_no_timer_is_left(desk, how):
    """After the end nothing of the leg counts any more, also not tokens that a lease covers too late."""
    desk.leg.begin(200, b"text/event-stream")
    desk.clock.run(0.5)
    if how == "too late":
        desk.clock.run(2 * FIRST_S)
    elif how == "fault":
        desk.leg.fault(RuntimeError("a bug"))
        assert desk.leg.ended.exception() is not None
    else:
        getattr(desk.leg, how)()
    desk.leg.close()
    desk.clock.run(0.1)
    desk.leg.progress()

    assert desk.watch.ends == 1
    assert desk.clock.waiting == []
    assert desk.released_legs == [desk.leg]


def test_a_shorter_patience_holds_from_the_next_look_on(desk):
    """What was learnt meanwhile counts; no timer is moved for it."""
    desk.read()
    desk.watch.patience_s = 0.25
    desk.clock.run(1.0 + LOOK_AGAIN_S)

    assert 0.5 + 0.25 <= desk.watch.silences[0] <= 0.5 + 1.0 + LOOK_AGAIN_S


def test_a_bug_met_at_one_leg_is_that_leg_s_alone(desk):
    """The others are looked at all the same."""
    other = Desk()
    other.leg._upstream = desk
    desk.silences.add(other.leg, desk.clock.now_s)
    desk.watch.silence = lambda: 1 / 0

    desk.clock.run(2 * FIRST_S)

    assert isinstance(desk.leg.ended.exception(), ZeroDivisionError)
    assert other.cause is Cause.SILENT
    other.clock.close()
