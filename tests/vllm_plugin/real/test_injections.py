"""Real vLLM with the plugin and a store in shared memory: fifty damaged pages by seed, of all kinds and in all places.

`make prove` does a thousand, under other settings too: docs/evidence/pages.md.
"""

import pytest

from tests.vllm_plugin.real.injections import PLACES, Injection, prepared
from tests.vllm_plugin.real.injector import KINDS

COUNT = 50


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with prepared(tmp_path_factory.mktemp("injections"), "recompute") as bench:
        yield bench


@pytest.fixture(scope="module")
def outcomes(bench):
    """Of all of them."""
    return [bench.one(Injection.of(seed)) for seed in range(COUNT)]


def test_nobody_is_answered_from_a_damaged_page(outcomes):
    """Every token is the one of the unharmed run, and as probable; so for those who come later."""
    assert [one for one in outcomes if one.wrong or one.moved or one.errors or one.again_wrong] == []


def test_every_damaged_page_that_was_to_be_read_is_counted(outcomes):
    """Of all kinds, in all places, resident and stored."""
    assert [one for one in outcomes if one.changed and one.read and not one.counted] == []
    harmed = [one for one in outcomes if one.changed and one.read]
    assert {one.place for one in harmed} == set(PLACES)
    assert {one.kind for one in harmed} == set(KINDS)
    assert len(harmed) >= COUNT * 0.9


def test_nothing_else_is_counted(outcomes):
    """What was as before is no alarm, and no page is counted more often than it was found."""
    assert [one for one in outcomes if one.broken or one.counted > one.harmed] == []
    assert [one for one in outcomes if one.counted and not one.changed] == []


def test_of_unharmed_pages_none_is_counted(bench):
    """Asked again, from the cache and from the store, all at once: the same answers.

    The first round reads what was harmed and not read yet: a load ends at its first bad page, and of two stored pages
    that were swapped the other one is still there.
    """
    engine = bench.engine
    counted = []
    for forget in (True, True, False):
        if forget:
            engine.forget()
        asked = [one for family in bench.asked for one in family]
        names = [engine.add(one.prompt, 8, **one.sampling) for one in asked]
        assert engine.run(names) == [one.right[:8] for one in asked]
        counted.append(engine.metric("holdfast_pages_corrupt"))
    assert counted == [counted[0]] * 3
