"""Real vLLM as a model that makes vectors of texts: its prefix hits are verified, and its outputs thrown away, too."""

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("pooling"), {"verify": "sampled:0.5", "scrub": "all"}, runner="pooling")
    yield engine
    engine.stop()


def test_vectors_are_those_of_intact_pages(engine):
    """Whether the gate finds a bad page, or the look after the step that read it."""
    ((prompt,),) = prompts(71, families=1, each=1, shared=0, own=180)
    computed = engine.embed(prompt)
    right = engine.embed(prompt)
    assert engine.metric("holdfast_prefix_hit_tokens") == 160
    assert right == pytest.approx(computed, abs=1e-4)

    for seed in range(10):
        chain = engine.scheduler.kv_cache_manager.block_pool
        block = next(block for block in chain.blocks[1:] if block.block_hash is not None)
        assert engine.damage("zero", block.block_id, seed=seed)
        assert engine.embed(prompt) == pytest.approx(computed, abs=1e-4), f"seed {seed}"
    assert engine.metric("holdfast_pages_corrupt", where="gate") > 0
    assert engine.metric("holdfast_pages_corrupt", where="scrub") > 0
    assert engine.metric("holdfast_requests_aborted") == 0
