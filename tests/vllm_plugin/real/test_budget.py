"""Real vLLM with pages of 128 tokens and hardly any time to look at them: what was found late ends with an error."""

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts

TOKENS = 100


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("budget"), {"scrub": 0.001}, block_size=128)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Two prompts that share four pages, and their answers."""
    ((one, two),) = prompts(11, families=1, each=2, shared=530, own=100)
    return [(one, engine.ask(one, TOKENS)), (two, engine.ask(two, TOKENS))]


def test_pages_of_128_tokens_are_verified_and_hit(engine, asked):
    """Whatever is done to them between requests."""
    for seed, kind in enumerate(["flip", "swap", "rows", "zero", "truncate"]):
        name = engine.add(asked[0][0], 8)
        engine.run([name])
        engine.damage(kind, engine.tables[name][1], engine.tables[name][2], seed)
        corrupt = engine.metric("holdfast_pages_corrupt")
        assert engine.ask(asked[1][0], 8) == asked[1][1][:8]
        assert engine.metric("holdfast_pages_corrupt") > corrupt


def test_a_page_found_late_ends_its_requests_with_an_error(engine, asked):
    """One page in some steps is looked at, so tokens were given out since: no clean end, and all are counted."""
    engine.forget()
    names = [engine.add(asked[0][0], TOKENS), engine.add(asked[1][0], TOKENS)]
    while len(engine.tokens.get(names[1], [])) < 10:
        engine.step()
    aborted = engine.metric("holdfast_requests_aborted")
    engine.damage("zero", engine.tables[names[0]][1])
    tokens = engine.run(names)

    assert [engine.ended[name] for name in names] == ["error", "error"]
    assert all(len(mine) < TOKENS for mine in tokens)
    assert engine.metric("holdfast_requests_aborted") == aborted + 2


def test_after_that_all_is_computed_anew(engine, asked):
    """What they left in the cache is not read."""
    assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]

