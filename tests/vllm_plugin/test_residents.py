"""Residents: which pages continue which, and what a block's generation is."""

from vllm_plugin.residents import Residents


def line(residents: Residents, chains: str, first_block: int, first_step: int, parent: bytes = b"") -> None:
    """One page after the other, each filled a step later."""
    for number, letter in enumerate(chains):
        block, chain = first_block + number, letter.encode()
        residents.filled(residents.page(block, 0, chain, 4 * number), parent, first_step + number)
        parent = chain


def test_what_continues_a_page_at_any_distance_is_found():
    """Children of children, on every branch, whichever block the page itself is in."""
    residents = Residents()
    line(residents, "abcd", 1, 1)
    line(residents, "xy", 11, 10, parent=b"b")
    line(residents, "qr", 21, 1)

    assert residents.descended(b"a", 0) == {2, 3, 4, 11, 12}
    assert residents.descended(b"a", 3) == {4, 11, 12}
    assert residents.descended(b"b", 0) == {3, 4, 11, 12}
    assert residents.descended(b"d", 0) == set()


def test_a_chain_that_is_there_twice_is_followed_twice():
    """Nobody knows which of the two was read."""
    residents = Residents()
    line(residents, "abc", 1, 1)
    line(residents, "abc", 11, 5)

    assert residents.descended(b"a", 0) == {2, 3, 12, 13}
    assert residents.descended(b"a", 4) == {12, 13}


def test_what_was_forgotten_or_given_out_continues_nothing():
    """It is no page any more."""
    residents = Residents()
    line(residents, "abc", 1, 1)
    residents.forget(3)
    assert residents.descended(b"a", 0) == {2}
    residents.given_out([2])

    assert residents.descended(b"a", 0) == set()
    assert len(residents) == 1
    assert residents.chain(1) == b"a"
    assert residents.chain(2) == b""


def test_what_continues_a_page_does_so_when_those_between_are_gone():
    """It was computed from all of them. Nothing is remembered for longer than that."""
    residents = Residents()
    line(residents, "abcde", 1, 1)
    for block in (3, 2, 4):
        residents.forget(block)
        assert 5 in residents.descended(b"a", 0)
    assert residents.descended(b"b", 0) == {5}
    line(residents, "b", 12, 9, parent=b"a")
    assert residents.descended(b"a", 0) == {12, 5}

    for block in (1, 12, 5):
        residents.forget(block)
    assert not residents._above
    assert not residents._below
    assert not residents._blocks


def test_a_block_that_was_given_out_is_of_another_generation():
    """What was said of its page before is not said of its page now."""
    residents = Residents()
    line(residents, "a", 1, 1)
    page = residents.page(1, 0, b"a", 0)
    assert residents.holds(page)
    assert residents.is_current(page)
    residents.given_out([1])

    assert not residents.holds(page)
    assert not residents.is_current(page)
    assert residents.page(1, 0, b"a", 0) != page


def test_after_a_reset_there_are_no_pages_but_generations_go_on():
    """A verdict that is on its way must not fit what comes then."""
    residents = Residents()
    residents.given_out([1])
    page = residents.page(1, 0, b"a", 0)
    residents.filled(page, b"", 1)
    residents.clear()

    assert len(residents) == 0
    assert residents.page(1, 0, b"a", 0) == page
