"""The failure breaker: when it opens, what it lets through, and three traps of what holds its state."""

import asyncio
from collections.abc import Callable

import pybreaker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.breaker import SLICES, Breaker, Outcome, Plan, State

ANSWERED, FAILED, NEUTRAL = Outcome.ANSWERED, Outcome.FAILED, Outcome.NEUTRAL
PLAN = Plan(window_s=10.0, calls=20, share=0.5, open_s=5.0, open_s_max=40.0, probe_s=30.0)


class Time:
    """A clock that is moved by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A breaker with its clock, and the states it came into."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.time, self.turns = Time(), list[State]()
        self.breaker = Breaker(plan, self.time, lambda turned: self.turns.append(turned.state))

    def calls(self, outcome: Outcome, times: int) -> None:
        for _ in range(times):
            self.breaker.enter().end(outcome)

    def opened(self) -> "Bench":
        self.calls(FAILED, PLAN.calls)
        assert self.breaker.state is State.REFUSING
        return self

    def half_opened(self) -> "Bench":
        self.opened().time.now_s += PLAN.open_s
        assert self.breaker.state is State.PROBING
        return self


# -------------------------------------------------------------------- the traps, on plain pybreaker


async def fails() -> None:
    raise ConnectionError


async def test_trap_one_pybreaker_takes_a_coroutine_that_was_made_for_a_success():
    """A decorated coroutine function fails a hundred times of a hundred, and the breaker never opens."""
    plain = pybreaker.CircuitBreaker(fail_max=5)
    guarded: Callable[[], object] = plain(fails)

    for _ in range(100):
        with pytest.raises(ConnectionError):
            await guarded()  # type: ignore[misc]

    assert plain.current_state == pybreaker.STATE_CLOSED


async def test_trap_two_pybreaker_lets_all_probes_through_at_once():
    """Half-open, fifty requests that come while the first one runs are all let in."""
    plain = pybreaker.CircuitBreaker(reset_timeout=0)
    plain.open()
    inside, most = 0, 0

    async def request() -> None:
        nonlocal inside, most
        with plain.calling():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(request() for _ in range(50)))

    assert most == 50


async def test_trap_three_pybreaker_counts_clients_that_leave():
    """Three cancellations open it, though no server did anything wrong."""
    plain = pybreaker.CircuitBreaker(fail_max=3)

    async def request() -> None:
        with plain.calling():
            await asyncio.sleep(3600)

    for _ in range(3):
        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert plain.current_state == pybreaker.STATE_OPEN


# -------------------------------------------------------------------- and ours


def test_failures_open_it():
    """Trap one: what counts is how a call ended, not that it was made."""
    bench = Bench()

    bench.calls(FAILED, PLAN.calls - 1)
    before = bench.breaker.state
    bench.calls(FAILED, 1)

    assert (before, bench.breaker.state) == (State.ALLOWING, State.REFUSING)
    assert bench.breaker.why == "20 of 20 requests failed in 10 s"


@given(st.integers(1, 200))
def test_half_open_there_is_one_probe_however_many_come(count):
    """Trap two: whoever comes while it runs is refused, and what was sent all the same decides nothing."""
    bench = Bench().half_opened()
    refused_before = bench.breaker.refuses
    entries = [bench.breaker.enter() for _ in range(count)]

    refused = bench.breaker.refuses
    for entry in entries[1:]:
        entry.end(ANSWERED)

    assert [entry.probe for entry in entries] == [True] + [False] * (count - 1)
    assert (refused_before, refused, bench.breaker.state) == (False, True, State.PROBING)
    entries[0].end(ANSWERED)
    assert (bench.breaker.state, bench.breaker.refuses) == (State.ALLOWING, False)


def test_who_leaves_counts_for_nothing():
    """Trap three: cancellations and refusals neither open it nor make failures a smaller share."""
    bench = Bench()
    bench.calls(NEUTRAL, 1000)
    after_neutral = bench.breaker.calls
    bench.calls(FAILED, PLAN.calls)

    assert after_neutral == (0, 0)
    assert bench.breaker.state is State.REFUSING


def test_a_probe_that_shows_nothing_makes_room_for_another():
    """A client that leaves during its probe neither closes nor opens the breaker, nor blocks it for good."""
    bench = Bench().half_opened()

    bench.breaker.enter().end(NEUTRAL)

    assert (bench.breaker.state, bench.breaker.refuses) == (State.PROBING, False)
    assert bench.breaker.enter().probe


# -------------------------------------------------------------------- when it opens


@given(st.lists(st.sampled_from([ANSWERED, FAILED]), max_size=60))
def test_it_opens_at_the_first_failure_that_is_one_too_many(outcomes):
    """Exactly when the window has enough calls, and half of them failed, and the last one did."""
    bench = Bench()
    for number, outcome in enumerate(outcomes, 1):
        bench.calls(outcome, 1)
        failures = sum(one is FAILED for one in outcomes[:number])
        if outcome is FAILED and number >= PLAN.calls and failures >= PLAN.share * number:
            assert bench.turns == [State.REFUSING]
            return
        assert bench.turns == []


def test_what_is_older_than_the_window_is_forgotten():
    """Failures of ten seconds ago do not open it; those of the last slice but one still count."""
    bench = Bench()
    bench.calls(FAILED, PLAN.calls - 1)
    bench.time.now_s += PLAN.window_s

    bench.calls(FAILED, 1)
    kept = bench.breaker.calls
    bench.time.now_s += PLAN.window_s - 2 * PLAN.window_s / SLICES
    bench.calls(FAILED, PLAN.calls - 1)

    assert kept == (1, 1)
    assert bench.breaker.state is State.REFUSING


# -------------------------------------------------------------------- open, half-open, closed


def test_it_refuses_for_its_time_by_the_clock_that_is_passed_in():
    """Wall time plays no part: open until open_s have passed here, then ready for a probe, by itself."""
    bench = Bench().opened()

    bench.time.now_s += PLAN.open_s - 0.001
    refused = bench.breaker.refuses
    bench.time.now_s += 0.001

    assert (refused, bench.breaker.refuses) == (True, False)
    assert bench.turns == [State.REFUSING, State.PROBING]


def test_each_probe_that_fails_doubles_the_wait_up_to_its_bound():
    """5, 10, 20, 40 and 40 s; an answered probe begins it anew."""
    bench = Bench().opened()
    waits = []
    for _ in range(5):
        begun_s = bench.time.now_s
        while bench.breaker.refuses:
            bench.time.now_s += 0.5
        waits.append(bench.time.now_s - begun_s)
        bench.calls(FAILED, 1)

    bench.time.now_s += PLAN.open_s_max
    bench.calls(ANSWERED, 1)
    bench.opened().time.now_s += PLAN.open_s

    assert waits == [5.0, 10.0, 20.0, 40.0, 40.0]
    assert not bench.breaker.refuses


def test_what_began_in_an_older_state_is_discarded():
    """A stream that fails after the breaker opened and closed says nothing of the server as it is now."""
    bench = Bench()
    old = [bench.breaker.enter() for _ in range(PLAN.calls)]
    bench.half_opened().calls(ANSWERED, 1)

    for entry in old:
        entry.end(FAILED)

    assert (bench.breaker.state, bench.breaker.calls) == (State.ALLOWING, (0, 0))


def test_a_call_is_ended_once():
    """Whatever is said of it afterwards does not count."""
    bench = Bench()
    entry = bench.breaker.enter()

    for outcome in (ANSWERED, FAILED, FAILED):
        entry.end(outcome)

    assert bench.breaker.calls == (1, 0)


def test_a_probe_that_lasts_does_not_keep_others_waiting_for_good():
    """After probe_s another one is let in; whichever ends first decides, and the other is of an older state then."""
    bench = Bench().half_opened()
    long = bench.breaker.enter()

    bench.time.now_s += PLAN.probe_s - 0.001
    early = bench.breaker.refuses
    bench.time.now_s += 0.001
    second = bench.breaker.enter()
    second.end(ANSWERED)
    long.end(FAILED)

    assert (early, second.probe, bench.breaker.state) == (True, True, State.ALLOWING)


MOVES = st.lists(
    st.tuples(st.sampled_from(["enter", "end", "wait"]), st.integers(0, 30), st.sampled_from(Outcome)), max_size=120
)


@given(MOVES)
def test_there_is_never_more_than_one_fresh_probe(moves):
    """Whatever comes, ends and passes, in whatever order: at most one unended probe is younger than probe_s."""
    bench = Bench(PLAN._replace(calls=2, open_s=1.0))
    running: list[tuple[float, int, object]] = []
    for what, number, outcome in moves:
        if what == "enter":
            entry = bench.breaker.enter()
            running.append((bench.time.now_s, bench.breaker.generation if entry.probe else -1, entry))
        elif what == "end" and running:
            running.pop(number % len(running))[2].end(outcome)  # type: ignore[attr-defined]
        else:
            bench.time.now_s += number / 4
        fresh = [
            one for one in running if one[1] == bench.breaker.generation and bench.time.now_s < one[0] + PLAN.probe_s
        ]
        assert len(fresh) <= 1
