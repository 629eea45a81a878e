"""Bounds for prompts and guesses for answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.estimate import LENGTHS_KEPT, PER_MESSAGE, PER_PROMPT, TOKENS_GUESS, AnswerLengths, prompt_bound
from loadtests.stub_tokenizer import encode


@given(st.lists(st.text(), max_size=5))
def test_no_text_has_more_tokens_than_bytes(texts):
    """The bound covers the tokens of any text in the request, and the template around it."""
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)

    assert sum(len(encode(text)) for text in texts) <= prompt_bound(size, 0, 0)
    assert prompt_bound(size, 2, 3) == size + 2 * PER_MESSAGE + 3 * PER_PROMPT


@given(st.lists(st.integers(0, 5000), min_size=10, max_size=300))
def test_nine_of_ten_answers_stay_within_the_guess(lengths):
    """Of the answers that are remembered, at least nine of ten are no longer than the quantile."""
    known = AnswerLengths()
    for length in lengths:
        known.note("m", 100, length)

    kept = lengths[-LENGTHS_KEPT:]
    guess = known.q90("m", 100)
    assert guess in kept
    assert sum(length <= guess for length in kept) >= 0.9 * len(kept)
    assert sum(length < guess for length in kept) <= 0.9 * len(kept)


def test_little_is_no_knowledge():
    """Until ten answers were seen a fixed guess is made."""
    known = AnswerLengths()
    for _ in range(9):
        known.note("m", 100, 7)
    before = known.q90("m", 100)
    known.note("m", 100, 7)

    assert (before, known.q90("m", 100)) == (TOKENS_GUESS, 7)


@pytest.mark.parametrize(("model", "prompt", "same"), [("m", 127, True), ("m", 128, False), ("n", 100, False)])
def test_knowledge_is_per_model_and_size_of_prompt(model, prompt, same):
    """Prompts of the same power of two share what is known; others and other models do not."""
    known = AnswerLengths()
    for _ in range(10):
        known.note("m", 64, 7)

    assert (known.q90(model, prompt) == 7) is same


def test_what_is_kept_is_bounded():
    """However many models are named, no more are remembered than allowed; those known still learn."""
    known = AnswerLengths(models_max=1)
    for number in range(1000):
        known.note(f"m{number}", 1, 5)
    for _ in range(500):
        known.note("m0", 1, 9)

    assert len(known._kept) == 32
    assert all(len(order) == len(ranked) <= LENGTHS_KEPT for order, ranked in known._kept.values())
    assert known.q90("m0", 1) == 9
