"""Gaps and pauses are those of each choice by itself."""

from gateway.stream.pace import GAPS_BATCH, Pace


class Clock:
    """Says what it was set to."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.gaps: list[list[float]] = []
        self.pace = Pace(lambda: self.now_s, self.gaps.append)

    def token(self, at_s: float, choice: int = 0) -> None:
        self.now_s = at_s
        self.pace.token(choice)


def test_a_gap_is_between_two_tokens_of_the_same_choice():
    """Tokens of one choice neither shorten nor lengthen the gaps of another."""
    clock = Clock()
    for at_s, choice in [(1.0, 0), (1.5, 1), (3.0, 0), (4.5, 1)]:
        clock.token(at_s, choice)
    clock.pace.flush()

    assert clock.gaps == [[2.0, 3.0]]
    assert clock.pace.first_token_at == 1.0


def test_each_lost_choice_has_its_own_pause_once():
    """A loss makes one pause of the next gap of each choice that was lost, however often it was told, and no other."""
    clock = Clock()
    for choice in (0, 1, 2):
        clock.token(1.0, choice)
    clock.pace.lost([0, 1])
    clock.pace.lost([1])
    for at_s, choice in [(2.0, 2), (3.0, 0), (3.5, 0), (6.0, 1), (6.5, 1), (7.0, 2)]:
        clock.token(at_s, choice)

    assert clock.pace.pauses == [2.0, 5.0]


def test_a_choice_that_had_no_token_before_the_loss_has_no_pause():
    """What began only after the loss waited for its first token, not for a next one."""
    clock = Clock()
    clock.token(1.0, 0)
    clock.pace.lost([0, 1])
    clock.token(2.0, 1)
    clock.token(4.0, 0)

    assert clock.pace.pauses == [3.0]


def test_gaps_are_handed_on_in_batches_each_once():
    """A full batch goes out by itself, the rest when flushed, and nothing twice."""
    clock = Clock()
    for number in range(GAPS_BATCH + 3):
        clock.token(float(number))
    full = [len(batch) for batch in clock.gaps]
    clock.pace.flush()
    clock.pace.flush()

    assert full == [GAPS_BATCH]
    assert [len(batch) for batch in clock.gaps] == [GAPS_BATCH, 2]
