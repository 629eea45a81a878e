"""The demo's judgement: it must not praise what was not exact."""

from pathlib import Path

import pytest

from gateway.local.demo import Answer, DemoFailed, Killing, first_difference, judge
from gateway.local.engine import Engine
from gateway.local.screen import Screen

LEGS = ["127.0.0.1:1", "127.0.0.1:2"]


def answer(text: str = "abcd", tokens: int = 30) -> Answer:
    return Answer(LEGS[0], text, arrivals_s=[0.0, 0.01, 0.02, 0.5], usage_tokens=tokens, finish_reason="length")


@pytest.fixture
def killing(tmp_path: Path) -> Killing:
    engine = Engine(Path("model"), log=tmp_path / "log", port=1, command=["unused"])
    killing = Killing([engine], Screen((tmp_path / "screen").open("w")))
    killing.victim, killing.killed_s, killing.pieces_before = engine, 1.0, 3
    return killing


def test_exact_failover_is_praised(killing: Killing) -> None:
    """Equal text, exact charge, another server: the promises held. The pause is the one after the kill."""
    verdict = judge(answer(), answer(), killing, LEGS, (5, 35))

    assert verdict.ok
    assert verdict.pause_ms == pytest.approx(480)


@pytest.mark.parametrize(
    ("got", "legs", "spent"),
    [
        pytest.param(answer("abXd"), LEGS, (5, 35), id="other text"),
        pytest.param(answer(), LEGS, (5, 65), id="charged twice"),
        pytest.param(answer(tokens=31), LEGS, (5, 36), id="charged for more than the uninterrupted run"),
        pytest.param(answer(), LEGS[:1], (5, 35), id="nobody took over"),
    ],
)
def test_anything_less_is_not(killing: Killing, got: Answer, legs: list[str], spent: tuple[int, int]) -> None:
    """One broken promise is enough."""
    assert not judge(got, answer(), killing, legs, spent).ok


def test_answer_that_ended_before_the_kill_proves_nothing(killing: Killing) -> None:
    """Without a kill there is no verdict."""
    killing.killed_s = 0.0

    with pytest.raises(DemoFailed, match="before the kill"):
        judge(answer(), answer(), killing, LEGS, (5, 35))


def test_first_difference_counts_a_missing_end() -> None:
    """A shorter text differs where it ends."""
    assert first_difference("abc", "abd") == 2
    assert first_difference("abc", "abcd") == 3
