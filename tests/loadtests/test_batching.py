"""The simulated engine: who waits, who runs, what it takes."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.batching import Costs, Engine, Event, Shape, Stream, What

EVEN = Costs(step_s=0.01, prefill_token_s=1e-4, decode_s=1e-3, kv_token_s=0.0, noise=0.0, stall_share=0.0)


def engine(costs: Costs = EVEN, seed: int = 1, **shape: int) -> Engine:
    """An engine whose steps last what is said, to the bit."""
    return Engine(Shape(**({"batched_tokens_max": 100, "seqs_max": 8, "kv_blocks": 100} | shape)), costs, Random(seed))


def told(one: Engine) -> list[tuple[What, str]]:
    return [(event.what, event.stream.name) for event in one.run_dry()]


def test_a_prompt_is_computed_in_chunks_and_then_an_answer_token_by_token():
    """250 tokens take three steps of a hundred, the last brings the first token; then one token each step."""
    one, stream = engine(), Stream("a", 250, 3)
    one.arrive(stream, 5.0)
    events = list(one.run_dry())

    first_s = 5.0 + 3 * 0.01 + 250 * 1e-4
    assert [(event.what, event.at_s) for event in events] == [
        (What.FIRST, pytest.approx(first_s)),
        (What.DONE, pytest.approx(first_s + 2 * 0.011)),
    ]
    assert (stream.first_s, stream.gap_s) == pytest.approx((first_s, 0.011))
    assert one.idle
    assert one.steps == 5


def test_what_is_cached_is_not_computed():
    """But one token, at least."""
    one, warm = engine(), Stream("a", 250, 1, cached=250)
    ahead = warm.to_prefill
    one.arrive(warm, 0.0)
    list(one.run_dry())

    assert ahead == 1
    assert warm.first_s == pytest.approx(0.011)


def test_a_step_has_so_many_tokens():
    """Whoever comes while a step is full waits, and is seen as waiting, with its tokens ahead of the next."""
    one = engine()
    for name in "abc":
        one.arrive(Stream(name, 80, 2), 0.0)
    early = (len(one.running), len(one.waiting), one.tokens_ahead)
    one.advance(one.next_s or 0.0)

    assert early == (1, 2, 240)
    assert (len(one.running), len(one.waiting)) == (3, 0)


def test_a_long_prompt_makes_those_who_decode_wait():
    """Chunked prefill: their tokens go on, but each takes as long as a full step."""
    one, first = engine(), Stream("a", 10, 20)
    one.arrive(first, 0.0)
    one.advance(0.05)
    alone_s = first.gap_s_max
    one.arrive(Stream("b", 500, 1), 0.05)
    list(one.run_dry())

    assert alone_s == pytest.approx(0.011)
    assert first.gap_s_max == pytest.approx(0.011 + 99 * 1e-4)


def test_no_more_streams_than_seats():
    """The others wait until one has ended, in the order they came."""
    one = engine(seqs_max=2)
    for name in "abcd":
        one.arrive(Stream(name, 5, 3), 0.0)
    one.advance(0.012)

    assert [stream.name for stream in one.waiting] == ["c", "d"]
    assert [name for what, name in told(one) if what is What.DONE] == ["a", "b", "c", "d"]


def test_a_full_cache_preempts_the_youngest_which_still_ends():
    """It computes anew what it had, and brings each token once."""
    one = engine(kv_blocks=10)
    old, young = Stream("old", 60, 60), Stream("young", 60, 60)
    one.arrive(old, 0.0)
    one.arrive(young, 0.0)
    events = told(one)

    assert (What.PREEMPTED, "young") in events
    assert (old.preempted, old.emitted, young.emitted) == (0, 60, 60)
    assert [event for event in events if event[0] is What.FIRST] == [(What.FIRST, "old"), (What.FIRST, "young")]
    assert (one.kv_use, one.idle) == (0.0, True)


def test_one_that_was_preempted_goes_before_those_that_wait():
    """It came before them."""
    one = engine(kv_blocks=10)
    streams = [Stream(name, 60, 60) for name in ("old", "young", "last")]
    for stream in streams:
        one.arrive(stream, 0.0)
    while not streams[1].preempted and one.next_s is not None:
        one.advance(one.next_s)

    assert [stream.name for stream in one.waiting] == ["young", "last"]


def test_nobody_is_let_in_without_room():
    """One that would not fit yet waits, and is not preempted at once."""
    one = engine(kv_blocks=8)
    one.arrive(Stream("a", 100, 10), 0.0)
    one.arrive(Stream("b", 90, 10), 0.0)

    assert [what for what, _ in told(one)] == [What.FIRST, What.DONE] * 2


def test_one_that_could_never_run_is_not_taken():
    """Else it would wait for ever, and all behind it."""
    with pytest.raises(ValueError, match="never fit the KV cache"):
        engine(kv_blocks=8).arrive(Stream("a", 100, 29), 0.0)


def test_one_that_waits_is_cancelled_at_once_and_one_that_runs_after_the_step():
    """Its blocks are free then, and one that is over stays as it was."""
    one = engine()
    runs, waits = Stream("runs", 80, 50), Stream("waits", 80, 50)
    one.arrive(runs, 0.0)
    one.arrive(waits, 0.0)
    one.cancel(waits, 0.001)
    one.cancel(runs, 0.001)
    at_once = [(event.what, event.stream.name) for event in one.advance(0.001)]
    later = told(one)
    one.cancel(runs, 9.0)

    assert (at_once, later) == ([(What.CANCELLED, "waits")], [(What.CANCELLED, "runs")])
    assert (one.advance(10.0), one.kv_use, one.idle, runs.emitted) == ([], 0.0, True, 0)


REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.integers(1, 150), st.integers(1, 40), st.integers(0, 100), st.booleans()),
    min_size=1,
    max_size=30,
)


def lived(requests, seed: int) -> tuple[Engine, list[Event], list[Stream]]:
    """An engine that has little room, and all that happened in it; some leave soon after they came."""
    one, now_s, events = engine(Costs(), seed, kv_blocks=16, seqs_max=4), 0.0, []
    streams = [Stream(str(at), asked, given, cached) for at, (_, asked, given, cached, _) in enumerate(requests)]
    for stream, (after_s, _, _, _, leaves) in zip(streams, requests, strict=True):
        now_s += after_s / 10
        one.arrive(stream, now_s)
        if leaves:
            now_s += 0.01
            one.cancel(stream, now_s)
        events += one.advance(now_s)
        assert sum(each.blocks for each in one.running) == 16 - one.blocks_free
        assert len(one.running) <= 4
    events += one.run_dry()
    return one, events, streams


@pytest.mark.slow
@given(REQUESTS, st.integers(0, 99))
def test_each_ends_once_and_nothing_is_left(requests, seed):
    """Whatever comes and leaves, however little room there is: all blocks are free in the end."""
    one, events, streams = lived(requests, seed)

    ends = [event.stream.name for event in events if event.what in (What.DONE, What.CANCELLED)]
    assert sorted(ends) == sorted(stream.name for stream in streams)
    assert all(stream.cancelled or stream.emitted == stream.output_tokens for stream in streams)
    assert (one.blocks_free, one.running, list(one.waiting), one.idle) == (16, [], [], True)


def test_a_seed_is_one_world():
    """The same requests and seed are the same events, to the bit; another seed is another noise."""
    requests = [(0.1, 90, 20, 0, at % 3 == 0) for at in range(20)]
    once, again, other = ([(e.at_s, e.what, e.stream.name) for e in lived(requests, seed)[1]] for seed in (1, 1, 2))

    assert once == again
    assert once != other


def test_time_does_not_go_back():
    """Whoever drives it wrongly is told so."""
    one = engine()
    one.advance(1.0)

    with pytest.raises(AssertionError, match="time does not go back"):
        one.advance(0.5)
