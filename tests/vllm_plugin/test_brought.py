"""Both halves, where another connector brings pages: they are looked at in the step that reads them first."""

import pytest

from tests.vllm_plugin import test_scheduler_side as scheduler
from tests.vllm_plugin import test_worker_side as worker
from tests.vllm_plugin.test_scheduler_side import TOKENS, FakeRequest
from tests.vllm_plugin.test_worker_side import page
from vllm_plugin.page import Kind, Lost, Page, Where
from vllm_plugin.scheduler_side import AGAIN_MAX
from vllm_plugin.strangers import Strangers

# ---- the scheduler's half


def world(**options) -> scheduler.World:
    world = scheduler.World(**options)
    world.half.strangers = Strangers()
    return world


def brought(world: scheduler.World, blocks=(1, 2, 3), pages: int = 2, hit: int = 0, name: str = "r") -> FakeRequest:
    """A request of nine tokens, for which others bring so many pages in the step that reads them."""
    request = FakeRequest(name, "abcdef", 9)
    world.admit(request, blocks, hit=hit)
    request.num_computed_tokens = (hit + pages) * TOKENS
    for number in range(hit + pages):
        world.hashed[request.blocks[number]] = request.block_hashes[number]
    return request


def lost(page: Page, kind: Kind, step: int = 1) -> Lost:
    return Lost(page, kind, Where.BROUGHT, step - 1)


def test_brought_pages_are_looked_at_as_what_they_should_be():
    """In the step that reads them; what was in their blocks before is forgotten."""
    one = world()
    orders = one.step((brought(one), 1, True))
    assert orders.brought == (Page(1, 1, 0, b"a", 0), Page(2, 1, 0, b"b", 4))
    assert {1, 2, 3} <= set(orders.forget)
    assert orders.remember
    assert not one.hear(1)
    assert "chains_broken" not in one.counts


def test_who_waits_while_they_are_brought_is_looked_at_when_it_is_admitted():
    """Its blocks are forgotten when it gets them: somebody writes to them from then on."""
    one = world()
    request = FakeRequest("r", "abcdef", 9)
    one.admit(request, (1, 2, 3))
    orders = one.step()
    assert set(orders.forget) == {1, 2, 3}
    assert orders.brought == ()

    request.num_computed_tokens = 8
    one.half.admitted(request)
    orders = one.step((request, 1, True))
    assert [page.block for page in orders.brought] == [1, 2]
    assert [page.generation for page in orders.brought] == [1, 1]


def test_without_other_connectors_nothing_is_brought():
    """Nor remembered."""
    one = scheduler.World()
    orders = one.step((brought(one, pages=0), 9, True))
    assert (orders.brought, orders.remember) == ((), False)


def test_who_computes_itself_has_nothing_looked_at():
    """Nor when it goes on."""
    one = world()
    request = brought(one, pages=0)
    assert one.step((request, 9, True)).brought == ()
    assert one.step((request, 1, False)).brought == ()


def test_a_page_that_stands_in_its_block_by_chance_is_brought_too():
    """The same page, in the same block, before that was given out anew: it is another one now."""
    one = world()
    request = brought(one, pages=0)
    one.step((request, 9, True))
    one.half.finished("r")
    one.hashed.clear()
    orders = one.step((brought(one, name="o"), 1, True))
    assert [(page.block, page.generation) for page in orders.brought] == [(1, 3), (2, 3)]


def test_pages_that_were_hit_here_are_looked_at_with_them():
    """And are no hole in the chain."""
    one = world()
    request = brought(one, pages=0)
    one.step((request, 9, True))
    orders = one.step((brought(one, blocks=(7, 8), pages=1, hit=1, name="o"), 1, True))
    assert [(page.block, page.chain) for page in orders.brought] == [(1, b"a"), (7, b"b")]
    assert "chains_broken" not in one.counts


@pytest.mark.parametrize("kind", [Kind.CHANGED, Kind.ABSENT, Kind.MISPLACED])
def test_who_read_a_bad_one_is_computed_again_and_not_brought_it_again(kind):
    """Corrupt or unknown: its step is thrown away, though it was given tokens in an earlier life."""
    one = world()
    request = brought(one)
    orders = one.step((request, 1, True))
    one.half._kept["r"].emitted_step = 0

    spoiled = one.hear(1, lost(orders.brought[1], kind))

    assert (spoiled.again, spoiled.failed) == ({"r"}, frozenset())
    assert one.evicted == {2}
    assert one.half.others_may_not(request, 0)
    assert one.half.others_may_not(request, 4)
    assert not one.half.others_may_not(request, 8)
    assert not one.half.others_may_not(FakeRequest("o", "xyz", 9), 0)


def test_the_good_page_beside_a_bad_one_stays():
    """It was not computed from it."""
    one = world()
    orders = one.step((brought(one, pages=2), 1, True))
    one.hear(1, lost(orders.brought[0], Kind.CHANGED))
    assert one.evicted == {1}
    assert set(one.step().withdraw) == set()


def test_what_was_filled_from_a_bad_one_in_that_step_is_withdrawn():
    """From what was computed on."""
    one = world()
    request = FakeRequest("r", "abcdef", 13)
    one.admit(request, (1, 2, 3, 4))
    request.num_computed_tokens = 8
    one.hashed |= {1: b"a", 2: b"b"}
    orders = one.step((request, 5, True))
    one.hear(1, lost(orders.brought[1], Kind.CHANGED))
    assert one.evicted == {2, 3}


def test_who_is_brought_bad_ones_all_the_time_fails():
    """There is an end to it."""
    one = world()
    for step in range(1, AGAIN_MAX + 2):
        orders = one.step((brought(one), 1, True))
        spoiled = one.hear(step, lost(orders.brought[0], Kind.CHANGED, step))
        assert bool(spoiled.failed) == (step > AGAIN_MAX)


def test_where_bad_pages_abort_an_unknown_one_does_not():
    """Nobody knows anything bad of it."""
    for kind, failed in ((Kind.ABSENT, frozenset()), (Kind.CHANGED, {"r"})):
        one = world(abort=True)
        orders = one.step((brought(one), 1, True))
        assert one.hear(1, lost(orders.brought[0], kind)).failed == failed


def test_where_a_step_cannot_be_thrown_away_both_do():
    """It cannot be computed again then."""
    for kind in (Kind.ABSENT, Kind.CHANGED):
        one = world(protected=False)
        orders = one.step((brought(one), 1, True))
        assert one.hear(1, lost(orders.brought[0], kind)).failed == {"r"}


def test_a_part_of_a_page_is_thrown_away_and_nothing_is_brought_any_more():
    """Nobody can look at it before it is full, and then it is sealed as it is."""
    one = world()
    request = FakeRequest("r", "abcdef", 9)
    one.admit(request, (1, 2, 3))
    one.step()  # it waits meanwhile
    request.num_computed_tokens = 7
    one.half.admitted(request)
    one.step((request, 2, True))
    assert one.hear(1).again == {"r"}
    assert one.half.others_may_not(request, 0)


def test_an_empty_cache_forgets_whom_not_to_ask():
    """Others were emptied with it."""
    one = world()
    request = brought(one)
    orders = one.step((request, 1, True))
    one.hear(1, lost(orders.brought[0], Kind.CHANGED))
    one.half.reset()
    assert not one.half.others_may_not(request, 0)


# ---- the worker's half


@pytest.fixture
def sealed() -> worker.World:
    """Blocks 1 to 4 were sealed, and then given out anew; what they held is remembered."""
    one = worker.World()
    one.kept = one.memory.copy()
    one.step(seal=tuple(page(block) for block in range(1, 5)), remember=True)
    return one


def moved(block: int, to: int) -> Page:
    """The page that was sealed in one block, brought to another."""
    return Page(to, 1, 0, page(block).chain, 0)


def bring(world: worker.World, block: int, to: int) -> None:
    world.memory[to] = world.kept[block]


def test_a_page_that_is_what_was_sealed_once_is_sealed_where_it_is_now(sealed):
    """And is what it was from then on: a request that hits it in that very step waits no longer than for others."""
    report = sealed.step(
        lambda: bring(sealed, 2, 7), forget=(2, 7), brought=(moved(2, 7),), check=(moved(2, 7),), remember=True
    )
    assert (report.lost, report.intact) == ((), {moved(2, 7)})
    assert sealed.counts["pages_brought"] == 1
    sealed.memory[7, 3] ^= 1
    assert [one.kind for one in sealed.step(check=(moved(2, 7),)).lost] == [Kind.CHANGED]


@pytest.mark.parametrize(("block", "kind"), [(7, Kind.CHANGED), (3, Kind.MISPLACED)])
def test_a_page_that_is_not_is_lost(sealed, block, kind):
    """Changed on the way, or another one. Nobody read it before that step."""
    report = sealed.step(lambda: bring(sealed, block, 7), forget=(2, 7), brought=(moved(2, 7),))
    assert report.lost == (Lost(moved(2, 7), kind, Where.BROUGHT, 1),)
    assert [one.kind for one in sealed.step(check=(moved(2, 7),)).lost] == [Kind.ABSENT]


def test_a_page_that_nobody_sealed_here_is_unknown(sealed):
    """Whether it is right, nobody can say. Who hits it in that step asks again."""
    strange = Page(7, 1, 0, b"?", 0)
    report = sealed.step(brought=(strange,), check=(strange,))
    assert report.lost == (Lost(strange, Kind.ABSENT, Where.BROUGHT, 1),)
    assert report.intact == frozenset()


def test_a_page_sealed_in_its_place_that_was_written_over_is_changed(sealed):
    """By whoever brought those beside it; it was intact until its last look."""
    sealed.step(check=(page(2),))
    report = sealed.step(lambda: bring(sealed, 6, 2), brought=(page(2),))
    assert report.lost == (Lost(page(2), Kind.CHANGED, Where.BROUGHT, 2),)


def test_a_brought_page_may_be_hit_before_it_is_read(sealed):
    """The request that it was brought for may not be admitted yet, or be no more."""
    bring(sealed, 2, 7)
    bring(sealed, 3, 8)
    report = sealed.step(forget=(7, 8), check=(moved(2, 7), moved(4, 8)))
    assert report.intact == {moved(2, 7)}
    assert [(one.page, one.kind, one.where) for one in report.lost] == [(moved(4, 8), Kind.ABSENT, Where.GATE)]


def test_what_was_withdrawn_is_not_right_any_more(sealed):
    """It had a valid seal, and should never have been computed."""
    sealed.step(withdraw=(2,), forget=(2,))
    report = sealed.step(lambda: bring(sealed, 2, 7), brought=(moved(2, 7),))
    assert [one.kind for one in report.lost] == [Kind.ABSENT]


def test_of_another_model_nothing_is_known(sealed):
    """Nor when the first one comes back."""
    for model in (b"n", b"m"):
        sealed.model.change(model)
        assert sealed.step().void
    report = sealed.step(lambda: bring(sealed, 2, 7), brought=(moved(2, 7),))
    assert [one.kind for one in report.lost] == [Kind.ABSENT]


def test_a_page_of_an_adapter_is_not_remembered(sealed):
    """Its chain names the adapter, which may be another one when the page comes back."""
    sealed.step(seal=(page(5),), unstored=frozenset([5]), remember=True)
    report = sealed.step(lambda: bring(sealed, 5, 7), brought=(moved(5, 7),))
    assert [one.kind for one in report.lost] == [Kind.ABSENT]


def test_nothing_is_remembered_where_nobody_could_bring_it_back():
    """It would take room for nothing."""
    one = worker.World()
    one.step(seal=(page(2),))
    assert len(one.half._known) == 0


def test_a_verdict_does_not_rename_a_page(sealed):
    """Whoever asked may have named it before its block was given out. What is found later is of the page as it is."""
    one = worker.World(scrub_share=None)
    one.step(seal=(page(2)._replace(generation=5),), hold=(("r", (2,)),))
    one.step(check=(page(2)._replace(generation=4),))
    one.memory[2, 3] ^= 1
    assert [found.page.generation for found in one.step().lost] == [5]
