"""The worker's half over memory of this test: what it seals, and what it finds."""

import numpy as np
import pytest

from tests.vllm_plugin.models import FakeServed
from vllm_plugin.digest import Pages, Part, Rank
from vllm_plugin.digests import Digests
from vllm_plugin.page import Kind, Orders, Page, Tail, Where
from vllm_plugin.worker_side import WorkerHalf

BLOCKS = 12


class World:
    """A half, and the memory of one layer."""

    def __init__(self, scrub_share: float | None = 0.0, scrub_floor_s: float = 0.0) -> None:
        self.counts: dict[str, float] = {}
        self.memory = np.random.default_rng(0).integers(0, 2**32, (BLOCKS, 64), np.uint32)
        self.half = WorkerHalf(
            scrub_share=scrub_share, scrub_floor_s=scrub_floor_s, count=self._count, clock=self._time
        )
        pages = Pages([Part.of(self.memory, "block ...")])
        self.half.model = self.model = FakeServed()
        self.half.digests = Digests(pages, model=b"m", rank=Rank(), pool="p", block_tokens=16, count=self._count)
        self.number, self.now_s = 0, 0.0

    def _count(self, name: str, number: float) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def _time(self) -> float:
        self.now_s += 1e-6
        return self.now_s

    def step(self, between=lambda: None, **orders):
        """between: the forward pass."""
        self.number += 1
        sent = Orders(self.number, **orders)
        self.half.before(sent)
        between()
        self.half.seal(sent)
        return self.half.check(sent)


def page(block: int, chain: bytes = b"", position: int = 0) -> Page:
    return Page(block, 1, 0, chain or bytes([65 + block]), position)


@pytest.fixture
def world() -> World:
    """With blocks 1 to 4 sealed."""
    world = World()
    world.step(seal=tuple(page(block) for block in range(1, 5)))
    return world


def test_what_was_sealed_is_intact(world):
    """And what was sealed in this very step too."""
    report = world.step(seal=(page(5),), check=(page(1), page(5)))

    assert report.intact == {page(1), page(5)}
    assert report.lost == ()
    assert report.model == b"m"


def test_a_block_that_is_asked_for_as_two_pages_is_one_of_them(world):
    """Whichever is asked for first."""
    report = world.step(check=(page(1, b"other", 32), page(1)))

    assert report.intact == {page(1)}
    assert [lost.page for lost in report.lost] == [page(1, b"other", 32)]


def flip(memory):
    memory[2, 7] ^= 1 << 30


def swap(memory):
    memory[[2, 3]] = memory[[3, 2]]


def rows(memory):
    memory[2] = np.roll(memory[2], 8)


def zero(memory):
    memory[2] = 0


def truncate(memory):
    memory[2, 40:] = 0


@pytest.mark.parametrize(("damage", "kind"), [
    (flip, Kind.CHANGED), (swap, Kind.MISPLACED), (rows, Kind.CHANGED), (zero, Kind.CHANGED), (truncate, Kind.CHANGED),
])  # fmt: skip
def test_what_is_not_as_it_was_is_found(world, damage, kind):
    """By kind, and with the last step after which it was intact."""
    damage(world.memory)
    report = world.step(check=(page(1), page(2)))

    lost = report.lost[0]
    assert (lost.page, lost.kind, lost.where, lost.good_step) == (page(2), kind, Where.GATE, 1)
    assert {other.kind for other in report.lost[1:]} <= {Kind.MISPLACED}  # its partner in a swap, if that had its turn
    assert report.intact == {page(1)}
    assert world.counts[f"corrupt.{kind}.gate"] == 1


@pytest.mark.parametrize("asked", [page(2, b"other"), page(2, position=16)])
def test_a_page_that_is_asked_for_as_another_is_misplaced(world, asked):
    """Intact, but of other tokens or of another place: the scheduler says what must be there."""
    (lost,) = world.step(check=(asked,)).lost

    assert lost.kind == Kind.MISPLACED


def test_what_was_forgotten_is_absent(world):
    """A block that was given out anew, before anybody wrote to it."""
    (lost,) = world.step(forget=(2,), check=(page(2),)).lost

    assert (lost.kind, lost.good_step) == (Kind.ABSENT, -1)
    assert world.step(check=(page(9),)).lost[0].kind == Kind.ABSENT


def test_a_step_of_another_model_seals_nothing_judges_nothing_and_says_so(world):
    """Pages of before went into it: what it filled is of no model. It is no corruption, and none is counted."""
    world.model.change(b"n")
    report = world.step(seal=(page(5),), check=(page(2),), tails=(Tail("r", page(6)),))

    assert (report.model, report.void, report.mixed_since) == (b"n", True, None)
    assert (report.intact, report.lost) == (frozenset(), ())
    assert world.counts["models_changed"] == 1
    assert not any(name.startswith("corrupt") for name in world.counts)

    later = world.step(check=(page(2), page(5)))
    assert not later.void
    assert [lost.kind for lost in later.lost] == [Kind.ABSENT, Kind.ABSENT]


def test_pages_of_the_next_model_are_sealed_with_it(world):
    """And are intact for as long as it is served."""
    world.model.change(b"n")
    world.step()
    world.step(seal=(page(2),))

    assert world.step(check=(page(2),)).intact == {page(2)}
    world.model.change(b"m")
    world.step()
    assert world.step(check=(page(2),)).lost[0].kind == Kind.ABSENT


def test_weights_that_differ_unannounced_say_since_when(world):
    """In steps, as the scheduler counts: of the last second that was right."""
    world = World()
    for second in range(5):
        world.now_s = float(second)
        world.step(seal=(page(second + 1),))
    world.model.since_s = 2.5
    report = world.step(check=(page(1),))

    assert (report.void, report.mixed_since, report.intact) == (True, 3, frozenset())
    assert world.counts["models_changed_unannounced"] == 1
    world.model.since_s = -1.0
    assert world.step().mixed_since == 0


def test_it_is_told_when_the_weights_are_to_be_read(world):
    """By the scheduler, who knows what was done to the engine."""
    world.model.looked.clear()
    world.step()
    world.step(reread=True)

    assert world.model.looked == [False, True]


def test_what_running_requests_hold_is_looked_at_unasked():
    """After each step, if there is time for it."""
    world = World(scrub_share=None)
    world.step(seal=(page(1), page(2)), hold=(("r", (1, 2)),))
    assert world.step().lost == ()
    flip(world.memory)
    (lost,) = world.step().lost

    assert (lost.page, lost.kind, lost.where, lost.good_step) == (page(2), Kind.CHANGED, Where.SCRUB, 2)


def test_what_changes_during_the_forward_pass_is_found_in_that_step():
    """It is looked at afterwards."""
    world = World(scrub_share=None)
    world.step(seal=(page(1), page(2)), hold=(("r", (1, 2)),))

    assert world.step(between=lambda: flip(world.memory)).lost[0].page == page(2)


def test_with_hardly_any_time_all_pages_have_their_turn():
    """A look that takes longer than a step's share is paid by the steps after it: many look at nothing."""
    world = World(scrub_share=0.01)
    world.step(seal=tuple(page(block) for block in range(1, 5)))
    flip(world.memory)
    found = []
    while not found and world.number < 1000:
        found += world.step(lambda: setattr(world, "now_s", world.now_s + 2e-6)).lost

    assert [lost.page for lost in found] == [page(2)]
    assert world.counts["pages_scrubbed"] < world.number - 1
    assert World(scrub_share=0.0).step().lost == ()


def test_of_what_running_requests_hold_one_page_is_looked_at_in_each_step():
    """However little the share is: they have as many steps as tokens."""
    world = World(scrub_share=1e-9)
    world.step(seal=tuple(page(block) for block in range(1, 5)), hold=(("r", (1, 2, 3, 4)),))
    world.counts["pages_scrubbed"] = 0
    flip(world.memory)
    found = [lost.page for _ in range(4) for lost in world.step().lost]

    assert found == [page(2)]
    assert world.counts["pages_scrubbed"] == 4


def test_without_a_share_nothing_is_scrubbed(world):
    """What is hit is verified all the same."""
    flip(world.memory)
    assert [world.step().lost for _ in range(20)] == [()] * 20
    assert world.step(check=(page(2),)).lost[0].kind == Kind.CHANGED


def test_where_one_tail_of_many_is_ordered_the_others_are_not_expected_to_stay():
    """Nobody says that they were written on."""
    world = World(scrub_share=0.01)
    world.step(tails=(tail(6),))
    world.step(lambda: world.memory.__setitem__((6, 3), 1), tails=(tail(7)._replace(request_id="s"),))
    assert world.step().lost == ()
    world.memory[7] = 1
    world.step(tails=(tail(7),))
    world.memory[7] = 2
    assert [lost.where for lost in world.step().lost] == [Where.TAIL]


def tail(block: int = 6) -> Tail:
    return Tail("r", Page(block, 1, 0, b"", 16))


def test_the_page_that_is_being_filled_is_looked_at_before_it_is_written_on(world):
    """What the forward pass writes is no damage, what was there before is."""
    world.step(tails=(tail(),))

    def write():
        world.memory[6, 3] += 1

    assert world.step(between=write, tails=(tail(),)).lost == ()
    world.memory[6, 1] ^= 1
    (lost,) = world.step(between=write, tails=(tail(),)).lost
    assert (lost.page.block, lost.kind, lost.where, lost.good_step) == (6, Kind.CHANGED, Where.TAIL, 3)


def test_a_tail_ends_when_it_is_full_or_its_request_is_gone(world):
    """Whoever writes to the block afterwards does no damage."""
    world.step(tails=(tail(),))
    world.step(seal=(page(6),))
    world.memory[6] = 1
    assert world.step().lost == ()
    world.step(tails=(tail(7),))
    world.memory[7] = 1

    assert world.step(release=("r",)).lost == ()
