"""Real vLLM twice, one after the other, with a page store between them: what the first has sealed the second reads."""

import random

import numpy as np
import pytest

from tests.vllm_plugin.real.engine import Engine, prompts

TOKENS = 24
BLOCK = 32


@pytest.fixture(scope="module")
def engine(tmp_path_factory, store):
    settings = {"scrub": "all", "store": "test://here"}
    engine = Engine(tmp_path_factory.mktemp("stored"), settings)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine, store):
    """Prompts of two families, and their answers, all pages of which are in the store."""
    flat = [prompt for family in prompts(21, families=2, each=2, shared=150, own=60) for prompt in family]
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]


def test_pages_are_brought_back_and_not_computed(engine, asked):
    """After the engine has forgotten all of them: all full ones of the prompt, and those of the answer."""
    engine.forget()
    loaded = engine.metric("holdfast_pages_loaded")
    assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]
    shared = 150 // BLOCK  # of the second of a family, these are here already
    assert engine.metric("holdfast_pages_loaded") - loaded == 2 * (210 // BLOCK) + 2 * (210 // BLOCK - shared)
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_many_at_once_are_served_from_it(engine, asked):
    """Each loads what it needs; nobody waits for ever."""
    engine.forget()
    names = [engine.add(prompt, TOKENS) for prompt, _ in asked * 2]
    assert engine.run(names) == [right for _, right in asked * 2]


def test_bad_pages_of_the_store_are_put_aside_and_computed(engine, asked, store):
    """Changed, exchanged, or lost between the question and the answer."""
    for seed in range(6):
        engine.forget()
        rng = random.Random(seed)
        before = engine.metric("holdfast_pages_corrupt", where="load")
        mine = [key for key in store.pages if store.pages[key].manifest.position < 150]
        key, other = rng.sample(mine, 2)
        bad = store.pages[key]
        if seed % 2:
            store.pages[key] = bad._replace(payload=store.pages[other].payload)
        else:
            store.pages[key] = bad._replace(payload=bytes([bad.payload[0] ^ 64]) + bad.payload[1:])

        assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked], f"seed {seed}"
        assert engine.metric("holdfast_pages_corrupt", where="load") == before + 1, f"seed {seed}"
        assert len(store.quarantined) == seed + 1
        # It was sealed again. Where it was computed with fewer tokens at once than before, its last bits may be others.
        assert np.allclose(*(np.frombuffer(one.payload, np.float32) for one in (store.pages[key], bad)), atol=1e-5)


def test_a_page_computed_from_a_bad_one_does_not_reach_the_store(engine, asked, store):
    """It waits for the verdict on the step that filled it; what is stored in its place is right."""
    prompt = asked[0][0][: 4 * BLOCK - 2][::-1]
    engine.forget()
    right = engine.ask(prompt, 20)
    engine.forget()
    store.pages.clear()
    name = engine.add(prompt, 20)
    for _ in range(20):
        if len(engine.tokens.get(name, [])) == 2:
            break
        engine.step()
    engine.damage("zero", engine.tables[name][1])
    engine.step()  # fills the fourth page, and finds the second one bad
    engine.step()
    assert 3 * BLOCK not in {page.manifest.position for page in store.pages.values()}

    assert engine.run([name]) == [right]
    engine.step()
    assert 3 * BLOCK in {page.manifest.position for page in store.pages.values()}
    engine.forget()
    assert engine.ask([*prompt, *right[:10]], 10) == right[10:]
