"""A session keeps its pages between two turns, and runs in none of the steps in which they may be found bad."""

from tests.vllm_plugin.test_scheduler_side import World, running
from vllm_plugin.page import Kind, Lost, Page, Report, Where


def between_turns(emitted: int, good_step: int):
    """Its first turn was step 1; in step 3 its second page is found bad, which was intact in `good_step` at last."""
    world = World()
    request, orders = running(world)
    world.half._kept["r"].emitted_step = emitted
    page: Page = orders.seal[1]
    world.step()
    world.step()
    spoiled = world.half.hear(Report(3, b"m", frozenset(), (Lost(page, Kind.CHANGED, Where.SCRUB, good_step),)), [])
    return world, request, spoiled


def test_its_next_turn_does_not_read_what_was_found_bad():
    """What it computes then is thrown away, and it is computed from the start."""
    world, request, spoiled = between_turns(emitted=1, good_step=2)
    assert not spoiled

    world.half.admitted(request)
    world.step((request, 1, True))
    assert world.half.hear(Report(4, b"m"), ["r"]).again == {"r"}


def test_it_ends_where_it_has_given_out_what_may_be_wrong():
    """Its last turn gave out tokens after that page was seen intact."""
    _, _, spoiled = between_turns(emitted=1, good_step=0)
    assert spoiled.failed == {"r"}
