"""Real vLLM with prompts of nearly four thousand tokens, computed in pieces: a chain is as good as its worst page."""

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.injector import KINDS

TOKENS = 24
SHARED, OWN = 3600, 200
PAGES = SHARED // 32


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(
        tmp_path_factory.mktemp("long"), {"scrub": "all"}, max_model_len=4096, max_num_batched_tokens=512,
        num_gpu_blocks_override=512,
    )  # fmt: skip
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Three prompts that share 112 pages, and their answers."""
    (many,) = prompts(91, families=1, each=3, shared=SHARED, own=OWN)
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in many]


def test_a_long_prefix_is_verified_as_a_whole_and_hit_by_many(engine, asked):
    """All at once."""
    hits = engine.metric("holdfast_prefix_hit_tokens")
    names = [engine.add(prompt, TOKENS) for prompt, _ in asked]
    assert engine.run(names) == [right for _, right in asked]
    assert engine.metric("holdfast_prefix_hit_tokens") - hits >= 3 * PAGES * 32
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_a_page_anywhere_in_it_is_found_and_what_follows_is_computed(engine, asked):
    """Between requests, and while one runs: its first page, one amid the prefix, the last one of it."""
    for seed, number in enumerate((0, PAGES // 2, PAGES - 1)):
        for running in (False, True):
            corrupt = engine.metric("holdfast_pages_corrupt")
            name = engine.add(asked[0][0], TOKENS)
            while len(engine.tokens.get(name, [])) < 5:
                engine.step()
            table = engine.tables[name]
            if not running:
                engine.run([name])
            assert engine.damage(KINDS[seed], table[number], table[number - 1], seed)
            if running:
                assert engine.run([name]) == [asked[0][1]], f"page {number}"
            assert engine.ask(asked[1][0], TOKENS) == asked[1][1], f"page {number}"
            assert engine.metric("holdfast_pages_corrupt") > corrupt
    assert engine.metric("holdfast_requests_aborted") == 0
