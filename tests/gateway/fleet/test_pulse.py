"""How one replica's streams are doing."""

from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.pulse import BETWEEN_UNKNOWN_S, FIRST_UNKNOWN_S, SIZES_MAX, Pulse, Watch


class Told:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def watch(pulse: Pulse, request_bytes: int = 100) -> Watch:
    return Watch(pulse, request_bytes, Told())


def counts(pulse: Pulse) -> tuple[int, int]:
    return pulse.streams, pulse.silent


MOVES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["token", "silence"])), max_size=40)


@given(MOVES, st.permutations(range(4)))
def test_counts_are_those_of_the_legs_and_return_to_nothing(moves, ends):
    """After any tokens and silences of four legs, and whichever ends first, the counts are right at every step."""
    pulse = Pulse()
    legs = [watch(pulse) for _ in range(4)]
    for number, move in moves:
        if move == "token":
            legs[number].token(0.01)
        else:
            legs[number].silence()
        assert counts(pulse) == (4, sum(leg.silent for leg in legs))
    for left, number in enumerate(ends, 1):
        legs[number].over()
        assert counts(pulse) == (4 - left, sum(leg.silent for leg in legs))

    assert counts(pulse) == (0, 0)
    assert pulse.tokens == sum(move == "token" for _, move in moves)


def test_each_silence_is_told_once():
    """A silence that goes on is one suspicion; after a token the next one is another."""
    pulse, told = Pulse(), Told()
    leg = Watch(pulse, 100, told)

    leg.silence()
    leg.silence()
    once = told.times
    leg.token(0.01)
    leg.silence()

    assert (once, told.times) == (1, 2)


def test_first_tokens_and_later_ones_have_their_own_rhythm():
    """Until its first token a leg may be silent for as long as prompts of its size take, then as long as tokens do."""
    pulse = Pulse()
    leg = watch(pulse)

    before = leg.patience_s
    leg.token(0.5)

    assert (before, leg.patience_s) == (FIRST_UNKNOWN_S, BETWEEN_UNKNOWN_S)
    assert leg.begun


@pytest.mark.parametrize("seen", [0, 1000])
def test_what_is_never_to_be_suspicious_is_not_before_much_is_known_either(seen):
    """However fast it turns out to be; an operator who says three seconds means it."""
    pulse = Pulse(3.0)
    first = pulse.first(100)
    for rhythm in (pulse.between, first):
        rhythm.note([0.01] * seen)

    assert min(pulse.between.patience_s, first.patience_s, pulse.first(10_000).patience_s) >= 3.0


def test_first_tokens_are_measured_by_the_size_of_the_request():
    """What is learnt of short prompts says nothing of long ones; sizes beyond all bounds share a class."""
    pulse = Pulse()
    for _ in range(100):
        watch(pulse, 100).token(2.0)

    assert pulse.first(100).patience_s > FIRST_UNKNOWN_S
    assert pulse.first(100_000).patience_s == FIRST_UNKNOWN_S
    assert pulse.first(1 << 60) is pulse.first(1 << 70)
    assert len({id(pulse.first(1 << bits)) for bits in range(100)}) == SIZES_MAX


def test_the_wait_for_a_first_token_says_nothing_of_the_gaps_between():
    """A long prompt does not make the server look slow."""
    pulse = Pulse()
    for _ in range(100):
        leg = watch(pulse)
        leg.token(4.0)
        leg.token(0.01)
        leg.over()

    assert pulse.between.patience_s < 1.0 < pulse.first(100).patience_s


@pytest.mark.parametrize(("streams", "silent"), list(product(range(6), repeat=2)))
def test_it_is_doubtful_when_half_of_its_streams_are_silent(streams, silent):
    """One silent stream of many is its own trouble; half of them are the server's."""
    if silent > streams:
        return
    pulse = Pulse()
    legs = [watch(pulse) for _ in range(streams)]
    for leg in legs[:silent]:
        leg.silence()

    assert pulse.doubtful is (silent > 0 and silent / streams >= 0.5)


@pytest.mark.parametrize("order", list(permutations(["silence", "token", "over"])))
def test_whatever_the_order_of_its_last_moments_nothing_is_left(order):
    """A leg's silence, token and end may come in any order at its end; after the end nothing of it counts."""
    pulse = Pulse()
    leg = watch(pulse)
    acts = {"silence": leg.silence, "token": lambda: leg.token(0.01), "over": leg.over}
    for act in order[: order.index("over") + 1]:
        acts[act]()

    assert counts(pulse) == (0, 0)
