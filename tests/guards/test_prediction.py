"""What nine of ten wait, predicted from what is known when they are sent."""

from math import inf, isfinite, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.conformal import ENOUGH, WINDOW
from guards.prediction import (
    BETWEEN_TOKENS,
    BUCKETS,
    FIRST_TOKEN,
    OUTCOME_S_MOST,
    Guess,
    Predictor,
    Quantile,
    Situation,
)

COUNT = st.integers(0, 10**12)
SITUATIONS = st.builds(Situation, COUNT, COUNT, COUNT, COUNT, COUNT, st.floats(allow_nan=True, allow_infinity=True))
IDLE = Situation(1000, 1000, 0, 0, 0, 0.0)


def drawn(rng: Random) -> Situation:
    """Any replica at any time."""
    size = int(2 ** rng.uniform(3, 14))
    uncached, ahead = rng.randint(1, size), rng.randrange(20_000)
    return Situation(size, uncached, ahead, rng.randrange(60), rng.randrange(5), rng.random())


def waited(rng: Random, now: Situation, token_s: float = 1e-4) -> float:
    """What an engine might make of it."""
    return (0.02 + token_s * (now.uncached_tokens + now.tokens_ahead)) * rng.lognormvariate(0, 0.2)


def taught(times: int, target=FIRST_TOKEN, **said: float) -> tuple[Quantile, list[tuple[Situation, Guess, float]]]:
    """One that has seen so many outcomes, and all of these with what was guessed."""
    rng, one, seen = Random(3), Quantile(target), []
    for _ in range(times):
        now = drawn(rng)
        guess, actual_s = one.guess(now), waited(rng, now, **said)
        one.note(guess, actual_s)
        seen.append((now, guess, actual_s))
    return one, seen


def test_before_anything_is_known_it_is_what_the_operator_guessed():
    """A base, and a time for each token that is to be computed, also those ahead."""
    cold = Quantile(FIRST_TOKEN)
    busy = IDLE._replace(tokens_ahead=9000)

    assert cold.guess(IDLE).p90_s == pytest.approx(FIRST_TOKEN.guess_s + 1000 * FIRST_TOKEN.guess_token_s)
    assert cold.guess(busy).p90_s == pytest.approx(FIRST_TOKEN.guess_s + 10_000 * FIRST_TOKEN.guess_token_s)
    assert Quantile(BETWEEN_TOKENS).guess(busy).p90_s == BETWEEN_TOKENS.guess_s


@pytest.mark.slow
@given(SITUATIONS, st.lists(st.tuples(SITUATIONS, st.floats(0.0, 1e300)), max_size=3 * ENOUGH))
def test_it_is_a_number_that_is_not_below_zero(now, seen):
    """Whatever servers said of themselves, and whatever came of it."""
    for target in (FIRST_TOKEN, BETWEEN_TOKENS):
        one = Quantile(target)
        for situation, actual_s in seen:
            one.note(one.guess(situation), actual_s)

        assert isfinite(one.guess(now).p90_s)
        assert one.guess(now).p90_s >= 0.0


@pytest.mark.parametrize(("said", "means"), [(nan, 0.0), (-1.0, 0.0), (inf, 1.0), (1.5, 1.0), (0.25, 0.25)])
def test_a_share_that_is_none_is_taken_for_the_nearest(said, means):
    """KV cache in use is what a server says, who may say anything."""
    assert Quantile(FIRST_TOKEN).guess(IDLE._replace(kv_use=said)).x[-1] == means


@pytest.mark.slow
def test_nine_of_ten_are_within():
    """After a while, for prompts of each size."""
    _, seen = taught(6000)
    by_size: dict[int, list[bool]] = {}
    for _, guess, actual_s in seen[1000:]:
        by_size.setdefault(guess.bucket, []).append(actual_s <= guess.p90_s)
    shares = {bucket: sum(hits) / len(hits) for bucket, hits in by_size.items() if len(hits) >= 300}

    assert len(shares) > 5
    assert all(share == pytest.approx(0.9, abs=0.03) for share in shares.values())


@pytest.mark.slow
def test_what_is_known_of_the_replica_counts():
    """The same prompt waits for those ahead of it, and a prefix that is cached takes no time."""
    one, _ = taught(3000)
    idle_s = one.guess(IDLE).p90_s

    assert one.guess(IDLE._replace(tokens_ahead=10_000)).p90_s == pytest.approx(1.02 * 1.3, rel=0.25)
    assert one.guess(IDLE._replace(uncached_tokens=1)).p90_s < idle_s / 2


@pytest.mark.slow
def test_a_replica_that_turns_slow_is_learnt():
    """Ten times slower: soon nine of ten are within again."""
    one, _ = taught(2000)
    rng, hits = Random(5), []
    for _ in range(3000):
        now = drawn(rng)
        guess, actual_s = one.guess(now), waited(rng, now, 1e-3)
        hits.append(actual_s <= guess.p90_s)
        one.note(guess, actual_s)

    assert sum(hits[:20]) < 5
    assert sum(hits[1000:]) / 2000 == pytest.approx(0.9, abs=0.03)


@pytest.mark.slow
def test_outcomes_may_come_late_and_in_any_order():
    """Hundreds are under way before the first comes back, and the short ones come first."""
    rng, one, open_, hits = Random(7), Quantile(FIRST_TOKEN), [], []
    for at in range(6000):
        now = drawn(rng)
        actual_s = waited(rng, now)
        open_.append((at + 150 * actual_s, one.guess(now), actual_s))
        due = sorted(entry for entry in open_ if entry[0] <= at)
        open_ = [entry for entry in open_ if entry[0] > at]
        for _, guess, known_s in due:
            hits.append(known_s <= guess.p90_s)
            one.note(guess, known_s)

    assert sum(hits[1000:]) / len(hits[1000:]) == pytest.approx(0.9, abs=0.02)


def test_a_size_of_which_little_is_known_is_told_by_its_neighbour():
    """A prompt of a size that was never seen is not guessed from nothing."""
    one, _ = taught(3000)
    never = one.guess(Situation(100_000, 100_000, 0, 0, 0, 0.0))

    assert (never.own, one.guess(IDLE).own) == (False, True)
    assert never.p90_s == pytest.approx(10.0, rel=0.5)


@pytest.mark.slow
def test_between_tokens_nothing_is_longer_than_what_was_seen():
    """A step is bounded, however long the queue; a queue is not."""
    bounded, seen = taught(3000, BETWEEN_TOKENS)
    most_s = max(actual_s for _, _, actual_s in seen)
    beyond = IDLE._replace(tokens_ahead=10**6)

    assert bounded.guess(beyond).p90_s <= most_s
    assert taught(3000)[0].guess(beyond).p90_s > most_s


def test_one_that_left_too_soon_says_nothing_and_one_that_left_too_late_that_it_was_more():
    """Without those who gave up, guesses would be as short as the patience of those who stay."""
    one, _ = taught(3000)
    guess = one.guess(IDLE)
    for _ in range(200):
        one.gave_up(guess, guess.p90_s / 2)
    unmoved = one.guess(IDLE)
    for _ in range(200):
        one.gave_up(guess, guess.p90_s * 2)

    assert unmoved == guess
    assert one.guess(IDLE).p90_s > guess.p90_s


@pytest.mark.slow
def test_what_is_kept_is_bounded():
    """However many sizes and outcomes there were."""
    rng, one = Random(9), Quantile(FIRST_TOKEN)
    for _ in range(20_000):
        now = IDLE._replace(input_tokens=int(2 ** rng.uniform(0, 40)))
        one.note(one.guess(now), rng.random())

    assert len(one._corrections) <= BUCKETS
    assert len(one._loaded) <= BUCKETS
    kept = [*one._loaded.values(), *(each for many in one._corrections.values() for each in many)]
    assert all(len(each._ranked) <= WINDOW for each in kept)


def test_an_outcome_beyond_all_measure_counts_as_the_most():
    """A clock that was suspended for a week is no reason to think that a prompt takes one."""
    one = Quantile(FIRST_TOKEN)
    for _ in range(2 * ENOUGH):
        one.note(one.guess(IDLE), 7 * 86_400.0)

    assert one.guess(IDLE).p90_s == pytest.approx(OUTCOME_S_MOST, rel=0.1)


def test_both_predictions_are_apart():
    """What is learnt of the first token is not taken for the time between tokens."""
    one = Predictor()
    for _ in range(2 * ENOUGH):
        one.first_token.note(one.first_token.guess(IDLE), 30.0)

    assert one.first_token.guess(IDLE).p90_s == pytest.approx(30.0, rel=0.1)
    assert one.between_tokens.guess(IDLE).p90_s == BETWEEN_TOKENS.guess_s


@pytest.mark.slow
def test_between_tokens_a_step_with_others_prompts_in_it_is_told_by_how_much_there_is_to_compute():
    """Not in a line: below some thousand tokens hardly any step is long, and above most are, however many they be."""
    rng, one = Random(11), Quantile(BETWEEN_TOKENS)

    def much(tokens: int) -> Situation:
        return IDLE._replace(uncached_tokens=tokens // 2, tokens_ahead=tokens // 2)

    for _ in range(3000):
        tokens = int(2 ** rng.uniform(6, 16))
        long = rng.random() < (0.05 if tokens < 2048 else 0.5)
        one.note(one.guess(much(tokens)), rng.lognormvariate(0, 0.05) * (0.17 if long else 0.007))
    little_s = [one.guess(much(1 << size)).p90_s for size in (7, 8, 9)]
    much_s = [one.guess(much(1 << size)).p90_s for size in (12, 13, 15)]

    assert max(little_s) < 0.06
    assert 0.16 < min(much_s) <= max(much_s) < 0.21


def test_the_model_that_was_better_lately_is_believed():
    """By what each had said; and it is the other one's turn, once that has been better for long."""
    one, _ = taught(100)
    guess = one.guess(IDLE)

    def after(times: int, *each_s: float) -> float:
        for _ in range(times):
            one.note(guess._replace(each_s=each_s), 1.0)
        now = one.guess(IDLE)
        return abs(now.p90_s - now.each_s[0]) / abs(now.each_s[1] - now.each_s[0])

    assert after(1000, 1.0, 2.0) < 0.01
    assert after(3000, 2.0, 1.0) > 0.99


@pytest.mark.parametrize("target", [FIRST_TOKEN, BETWEEN_TOKENS])
def test_a_line_that_was_thrown_off_is_not_believed_for_ever(target):
    """However far off: what it says has a bound, and so has how wrong it was."""
    one, _ = taught(200, target)
    one._line.model = (1e308,) * len(one._line.model)
    wild = one.guess(IDLE)
    one.note(wild, 0.1)
    one._line.model = one._line.start
    for _ in range(3000):
        one.note(one.guess(IDLE), 0.1)

    assert wild.p90_s <= OUTCOME_S_MOST
    assert one.guess(IDLE).p90_s == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("target", [FIRST_TOKEN, BETWEEN_TOKENS])
def test_what_takes_no_time_at_all_is_learnt_too(target):
    """No model is off, and none takes anything relative to it."""
    one = Quantile(target)
    for _ in range(3 * ENOUGH):
        one.note(one.guess(IDLE), 0.0)

    assert one.guess(IDLE).p90_s == pytest.approx(0.0, abs=1e-3)
