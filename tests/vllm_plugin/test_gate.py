"""The gate: who may read what, and for how long a verdict holds."""

import random

from vllm_plugin.gate import Gate
from vllm_plugin.page import Kind, Lost, Page, Report, Where

ONE, TWO = Page(1, 0, 0, b"one", 0), Page(2, 0, 0, b"two", 16)


def gate(verify: float = 1.0) -> Gate:
    return Gate(verify, random.Random(0))


def passed(gate: Gate) -> tuple[Page, ...]:
    return gate.take(lambda page: True)


def test_a_request_waits_until_its_pages_were_seen():
    """Asked, verified, admitted."""
    guard = gate()

    assert not guard.opens("r", [ONE, TWO])
    assert passed(guard) == (ONE, TWO)
    guard.hear(Report(1, b"m", frozenset([ONE, TWO])))
    assert guard.opens("r", [ONE, TWO])
    assert guard.admitted("r") == (ONE, TWO)
    assert passed(guard) == ()


def test_a_request_without_hits_does_not_wait():
    """There is nothing to verify."""
    assert gate().opens("r", [])


def test_all_who_wait_for_a_page_have_it_verified_once():
    """A shared prefix costs what one costs."""
    guard = gate()
    for name in "abc":
        guard.opens(name, [ONE, TWO])

    assert passed(guard) == (ONE, TWO)
    guard.hear(Report(1, b"m", frozenset([ONE, TWO])))
    assert all(guard.opens(name, [ONE, TWO]) for name in "abc")


def test_a_verdict_holds_for_one_pass():
    """It is stale afterwards."""
    guard = gate()
    guard.opens("r", [ONE])
    passed(guard)
    guard.hear(Report(1, b"m", frozenset([ONE])))
    passed(guard)

    assert not guard.opens("r", [ONE])


def test_who_was_let_in_but_found_no_room_is_verified_again_at_once():
    """It must neither read on an old verdict, nor wait two passes for each new one."""
    guard = gate()
    guard.opens("r", [ONE])
    passed(guard)
    guard.hear(Report(1, b"m", frozenset([ONE])))
    assert guard.opens("r", [ONE])  # but there is no room

    assert passed(guard) == (ONE,)
    guard.hear(Report(2, b"m", frozenset([ONE])))
    assert guard.opens("r", [ONE])


def test_a_verdict_is_on_a_block_as_it_was_given_out():
    """The same block with the same tokens, written anew, was not seen."""
    guard = gate()
    guard.opens("r", [ONE])
    passed(guard)
    guard.hear(Report(1, b"m", frozenset([ONE])))

    assert not guard.opens("r", [ONE._replace(generation=1)])


def test_a_bad_page_stays_shut():
    """Whoever else said that it is intact."""
    guard = gate()
    guard.opens("r", [ONE])
    passed(guard)
    guard.hear(Report(1, b"m", frozenset([ONE]), (Lost(ONE, Kind.CHANGED, Where.GATE, 0),)))

    assert not guard.opens("r", [ONE])


def test_a_verdict_made_with_other_weights_is_none():
    """What was intact is of another model now."""
    guard = gate()
    guard.opens("r", [ONE])
    passed(guard)
    guard.hear(Report(1, b"m", frozenset([ONE])))
    guard.hear(Report(1, b"other"))

    assert not guard.opens("r", [ONE])


def test_all_workers_must_find_a_page_intact():
    """A shard of it may be bad, or one may not have seen it."""
    here, there = Report(1, b"m", frozenset([ONE, TWO])), Report(1, b"m", frozenset([TWO]))

    assert here.merged(there).intact == {TWO}
    assert here.merged(Report(1, b"n")).model != b"m"


def test_some_are_believed_if_so_told_but_only_what_was_sealed():
    """Sampling trades certainty for time; what was never sealed was never known."""
    guard = gate(0.5)
    pages = [Page(n, 0, 0, bytes([n]), 0) for n in range(100)]
    guard.opens("r", pages)
    looked_at = guard.take(lambda page: page.block >= 10)

    assert set(pages[:10]) <= set(looked_at)
    assert 30 < len(looked_at) < 80
    guard.hear(Report(1, b"m", frozenset(looked_at)))
    assert guard.opens("r", pages)


def test_not_more_is_verified_in_a_step_than_a_step_can_bear():
    """Who came first is first; the others ask again. One that hits more than that has its turn too."""
    guard = gate()
    many = [[Page(1000 * n + i, 0, 0, b"c", 0) for i in range(600)] for n in range(4)]
    for n, pages in enumerate(many):
        assert not guard.opens(str(n), pages)
    first = passed(guard)
    assert first == (*many[0], *many[1])

    guard.hear(Report(1, b"m", frozenset(first)))
    assert [guard.opens(str(n), pages) for n, pages in enumerate(many)] == [True, True, False, False]
    guard.admitted("0"), guard.admitted("1")
    passed(guard)
    assert not guard.opens("huge", [page for pages in many for page in pages])
    assert len(passed(guard)) == 2400


def test_who_may_go_is_known_however_many_asked_before():
    """What it was let in with is asked for later."""
    guard = gate()
    guard.opens("r", [ONE])
    passed(guard)
    guard.hear(Report(1, b"m", frozenset([ONE])))
    for n in range(2):
        guard.opens(str(n), [Page(1000 * n + i, 0, 0, b"c", 0) for i in range(600)])

    assert guard.opens("r", [ONE])
    assert guard.admitted("r") == (ONE,)


def test_off_is_off():
    """Nobody waits and nothing is verified."""
    guard = gate(0)

    assert guard.opens("r", [ONE])
    assert passed(guard) == ()


def test_what_one_worker_says_of_the_model_holds_for_all():
    """Void, not whole, and the earliest step that may be mixed; in whatever order they are heard."""
    fine, bad = Report(7, b"m"), Report(7, b"n", settled=False, void=True, mixed_since=4)
    later = Report(7, b"o", void=True, mixed_since=6)

    for merged in (fine.merged(bad), bad.merged(fine), later.merged(fine).merged(bad)):
        assert (merged.settled, merged.void, merged.mixed_since) == (False, True, 4)
    assert fine.merged(fine).mixed_since is None
