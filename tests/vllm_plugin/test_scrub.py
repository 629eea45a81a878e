"""The scrubber's order, and what a round is."""

from vllm_plugin.scrub import Scrubber


def scrubber(seen: int) -> Scrubber:
    scrubber = Scrubber()
    for block in range(seen):
        scrubber.seen(block, float(block))
    return scrubber


def test_what_is_held_comes_first_and_the_longest_unseen_first_among_that():
    """And one of the others, so that they have their turn."""
    scrub = scrubber(6)
    scrub.hold("r", [4, 2])
    scrub.seen(2, 10.0)

    assert scrub.pick(None) == [4, 2, 0]


def test_what_is_held_from_now_on_was_not_looked_at_for_long():
    """So it comes before what is held already, and was."""
    scrub = scrubber(6)
    scrub.hold("a", [5])
    scrub.hold("b", [1])

    assert scrub.pick(None)[:2] == [1, 5]


def test_a_budget_is_kept():
    """By what a page was seen to cost."""
    scrub = scrubber(100)
    for _ in range(100):
        scrub.cost(10, 0.01)  # a millisecond each

    assert len(scrub.pick(0.0055)) == 5
    assert len(scrub.pick(0.0001)) == 1
    assert scrub.pick(0.0) == scrub.pick(-1.0) == []
    scrub.hold("r", [7, 8])
    assert len(scrub.pick(0.0055)) == 5
    assert scrub.pick(-1.0) == [8]  # of what is held, one in any case


def test_all_have_their_turn():
    """Round robin, over steps."""
    scrub, looked_at = scrubber(10), []
    for step in range(10):
        for block in scrub.pick(0.0001):
            scrub.seen(block, 100.0 + step)
            looked_at.append(block)

    assert sorted(looked_at) == list(range(10))
    assert scrub.age_s(110.0) == 10.0


def test_what_was_released_by_all_is_idle():
    """Two hold it, one after the other lets go."""
    scrub = scrubber(2)
    scrub.hold("a", [1])
    scrub.hold("b", [1])
    scrub.release("a")
    assert scrub.pick(None)[0] == 1
    scrub.release("b")

    assert scrub.pick(None) == [0]


def test_what_was_forgotten_is_not_looked_at():
    """There is no seal to compare it with."""
    scrub = scrubber(2)
    scrub.hold("a", [1])
    scrub.forget(1)

    assert scrub.pick(None, skip=[0]) == []
    assert scrubber(0).age_s(5.0) == 0.0
