"""Real vLLM as a model that makes vectors of texts: its prefix hits are verified, and its outputs thrown away, too."""

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("pooling"), {"verify": "sampled:0.5", "scrub": "all"}, runner="pooling",
                    max_num_batched_tokens=128)  # fmt: skip
    yield engine
    engine.stop()


def test_vectors_are_those_of_intact_pages(engine):
    """Whether the gate finds a bad page, or the look after the step that read it."""
    ((prompt,),) = prompts(71, families=1, each=1, shared=0, own=180)
    computed = engine.embed(prompt)
    right = engine.embed(prompt)
    assert engine.metric("holdfast_prefix_hit_tokens") == 160
    assert right == pytest.approx(computed, abs=1e-4)

    changed = 0
    for seed in range(12):
        chain = engine.scheduler.kv_cache_manager.block_pool
        block = next(block for block in chain.blocks[1:] if block.block_hash is not None)
        changed += engine.damage("zero", block.block_id, seed=seed)  # not where that layer of it was zero already
        assert engine.embed(prompt) == pytest.approx(computed, abs=1e-4), f"seed {seed}"
    assert changed > 6
    assert engine.metric("holdfast_pages_corrupt", where="gate") > 0
    assert engine.metric("holdfast_pages_corrupt", where="scrub") > 0
    assert engine.metric("holdfast_requests_aborted") == 0


def vectors(engine, name, prompt, damaged=False):
    """One for each token, of a prompt that is computed in parts; its first page is damaged between the first two."""
    from vllm import PoolingParams

    engine._engine.add_request(name, {"prompt_token_ids": prompt}, PoolingParams(task="token_embed"))
    for _ in range(100):
        for output in engine._engine.step():
            if output.finished:
                return output.outputs.data
        for request_id in engine.scheduler.requests if damaged else ():
            damaged = False
            (blocks,) = engine.scheduler.kv_cache_manager.get_block_ids(request_id)
            assert engine.damage("zero", blocks[0])
    raise AssertionError("not ended")


def test_vectors_of_tokens_that_are_computed_anew_are_as_many_as_tokens(engine):
    """vLLM keeps those of a prompt's first part until its last one is there: they come again, and must not be twice."""
    ((prompt,),) = prompts(72, families=1, each=1, shared=0, own=400)  # four parts
    right = vectors(engine, "right", prompt)
    before = engine.metric("holdfast_requests_recomputed")
    found = vectors(engine, "damaged", prompt, damaged=True)

    assert engine.metric("holdfast_requests_recomputed") == before + 1
    assert found.shape == right.shape
    assert (found - right).abs().max() < 1e-4
