"""What a request says of its session, and what of that is believed."""

import pytest

from vllm_plugin import whose as room
from vllm_plugin.store import contract
from vllm_plugin.whose import GENERATION, GENERATION_MAX, NOBODY, SESSION, Whose, refused, whose


@pytest.mark.parametrize("params", [None, {}, {"remote_host": "x"}, "s", 7, []])
def test_who_says_nothing_is_nobody(params):
    """Other connectors have parameters of their own."""
    assert whose(params) == NOBODY
    assert refused(params) is None


@pytest.mark.parametrize("name", ["s", "Alice-7_b.c:d", "x" * 64])
@pytest.mark.parametrize("generation", [0, 1, GENERATION_MAX])
def test_a_session_and_its_generation_are_believed(name, generation):
    params = {SESSION: name, GENERATION: generation, "remote_host": "x"}

    assert whose(params) == Whose(name, generation)
    assert refused(params) is None
    assert whose({SESSION: name}) == Whose(name, 0)


@pytest.mark.parametrize(("params", "field"), [
    ({SESSION: ""}, SESSION), ({SESSION: "x" * 65}, SESSION), ({SESSION: "a b"}, SESSION), ({SESSION: "s\n"}, SESSION),
    ({SESSION: "ä"}, SESSION), ({SESSION: 7}, SESSION), ({SESSION: None}, SESSION), ({SESSION: ["s"]}, SESSION),
    ({SESSION: "s", GENERATION: -1}, GENERATION), ({SESSION: "s", GENERATION: 1.0}, GENERATION),
    ({SESSION: "s", GENERATION: "1"}, GENERATION), ({SESSION: "s", GENERATION: True}, GENERATION),
    ({SESSION: "s", GENERATION: None}, GENERATION), ({SESSION: "s", GENERATION: 2**53}, GENERATION),
    ({GENERATION: 1}, GENERATION),
])  # fmt: skip
def test_what_cannot_be_is_nobodys_and_told_with_its_field(params, field):
    """So an engine never has to do with it."""
    assert whose(params) == NOBODY
    found = refused(params)
    assert found is not None
    assert found.field == field
    assert found.why


def test_a_store_takes_every_generation_that_is_believed():
    """One room does not know the other."""
    assert room.GENERATION_MAX == contract.GENERATION_MAX
