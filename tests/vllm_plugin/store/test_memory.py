"""A map as memory of this process: what is lent of it, and what is not of it at all."""

import ctypes

import pytest

from vllm_plugin.store.memory import Lent, Map

BYTES = 64


@pytest.fixture
def room():
    """Memory with a map in its middle: what is before and behind belongs to somebody else."""
    return ctypes.create_string_buffer(bytes(range(3 * BYTES)), 3 * BYTES)


@pytest.fixture
def where(room):
    return Map(ctypes.addressof(room) + BYTES, BYTES)


def test_what_is_lent_is_what_the_views_show_until_it_is_taken_back(room, where):
    """To the last byte."""
    inside = memoryview(room)[BYTES : 2 * BYTES]
    lent = Lent(where, [inside[:8], inside[BYTES - 8 :]])

    assert [bytes(one) for one in lent.views] == [bytes(range(64, 72)), bytes(range(120, 128))]
    assert lent.take_back()


@pytest.mark.parametrize(("begin", "end"), [(0, 8), (BYTES - 4, BYTES + 4), (2 * BYTES - 4, 2 * BYTES + 4), (128, 136)])
def test_what_is_not_of_the_map_is_neither_lent_nor_overwritten(room, where, begin, end):
    """Before it, across either end, behind it: else it would be other memory of the map, or none of ours."""
    before, view = bytes(room), memoryview(room)[begin:end]

    with pytest.raises(AssertionError, match="not of this map"):
        Lent(where, [view])
    with pytest.raises(AssertionError, match="not of this map"):
        where.zero(view)
    assert bytes(room) == before
