"""A scrub of all pages between two steps: what it looks at, and what the scheduler hears of it."""

import itertools

import pytest

from tests.vllm_plugin.test_worker_side import World, flip, page, swap
from vllm_plugin.page import Kind, Where
from vllm_plugin.worker_side import ROUNDS_MAX, SLICE_PAGES, Scrubbed


@pytest.fixture
def world() -> World:
    """With blocks 1 to 4 sealed, and a clock that moves a second each time somebody looks at it."""
    world = World()
    seconds = itertools.count(1)
    world.half._clock = lambda: float(next(seconds))
    world.step(seal=tuple(page(block) for block in range(1, 5)))
    return world


def test_it_looks_at_all_pages_held_or_not(world):
    """And finds nothing where nothing is."""
    world.step(hold=(("r", (2, 3)),))
    before = world.counts["pages_scrubbed"]

    assert world.half.resident() == 4
    assert world.half.scrub("one", 100.0) == Scrubbed(4, 0, 0)
    assert world.counts["pages_scrubbed"] == before + 4
    assert world.step().lost == ()


def test_what_is_bad_is_reported_with_the_next_step_and_only_there(world):
    """As what the scrubber finds: by the step after which it was last seen intact."""
    swap(world.memory)
    assert world.half.scrub("one", 100.0) == Scrubbed(4, 2, 0)
    assert world.half.resident() == 2
    assert world.half.scrub("two", 100.0) == Scrubbed(2, 0, 0)

    lost = world.step().lost
    assert [(one.page, one.kind, one.where, one.good_step) for one in lost] == [
        (page(2), Kind.MISPLACED, Where.SCRUB, 1), (page(3), Kind.MISPLACED, Where.SCRUB, 1),
    ]  # fmt: skip
    assert world.counts["corrupt.misplaced.scrub"] == 2
    assert world.step().lost == ()


def test_a_bad_page_that_is_hit_in_that_step_is_reported_once(world):
    """The gate would find it absent, and count it again."""
    flip(world.memory)
    world.half.scrub("one", 100.0)
    report = world.step(check=(page(1), page(2)))

    assert [(one.page, one.kind) for one in report.lost] == [(page(2), Kind.CHANGED)]
    assert report.intact == {page(1)}
    assert "corrupt.absent.gate" not in world.counts


def test_what_it_saw_intact_was_intact_after_the_last_step(world):
    """So whatever was filled until then was not computed from a bad page."""
    for _ in range(3):  # the last one looks at another page
        world.step()
    world.half.scrub("one", 100.0)
    flip(world.memory)
    world.half.scrub("two", 100.0)

    assert [one.good_step for one in world.step().lost] == [4]


def test_parts_of_one_scrub_look_at_each_page_once(world, monkeypatch):
    """What was sealed since it began is not its business."""
    monkeypatch.setattr("vllm_plugin.worker_side.SLICE_PAGES", 2)
    assert world.half.scrub("one", 0.0) == Scrubbed(2, 0, 2)
    world.step(seal=(page(7), page(8)))
    left = [world.half.scrub("one", 0.0)]
    while left[-1].left:
        left.append(world.half.scrub("one", 0.0))

    assert sum(part.checked for part in left) == 2
    assert world.half.scrub("two", 100.0).checked == 6


def test_a_part_takes_no_longer_than_it_may_but_looks_at_some_pages(world, monkeypatch):
    """A page is two looks at the clock here, and so two seconds."""
    monkeypatch.setattr("vllm_plugin.worker_side.SLICE_PAGES", 1)

    assert world.half.scrub("one", 0.0) == Scrubbed(1, 0, 3)
    assert world.half.scrub("two", 3.5).checked == 2


def test_pages_that_go_away_meanwhile_are_not_looked_at(world, monkeypatch):
    """Their blocks are others' now."""
    monkeypatch.setattr("vllm_plugin.worker_side.SLICE_PAGES", 1)
    world.half.scrub("one", 0.0)
    world.step(forget=(1, 2, 3, 4))
    world.memory[:] = 0

    assert world.half.scrub("one", 100.0) == Scrubbed(0, 0, 0)


def test_scrubs_that_are_given_up_are_forgotten(world, monkeypatch):
    """Their askers went away. One that was forgotten begins anew."""
    monkeypatch.setattr("vllm_plugin.worker_side.SLICE_PAGES", 1)
    for number in range(ROUNDS_MAX + 1):
        world.half.scrub(str(number), 0.0)

    assert len(world.half._rounds) == ROUNDS_MAX
    assert world.half.scrub("0", 0.0).left == 3
    assert SLICE_PAGES > 1


def test_where_there_is_nothing_there_is_nothing_to_do():
    """An engine that has just started."""
    assert World().half.scrub("one", 1.0) == Scrubbed(0, 0, 0)


def test_blocks_that_were_given_up_are_left_alone(world):
    """Where an engine sleeps their memory may be gone, and is no page that changed in any case."""
    world.memory[:] = 0

    assert world.half.scrub("one", 100.0, given_up=[1, 2, 3, 4]) == Scrubbed(0, 0, 0)
    assert world.half.scrub("two", 100.0, given_up=[1, 2, 3]) == Scrubbed(1, 1, 0)
