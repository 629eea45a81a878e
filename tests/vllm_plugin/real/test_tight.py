"""Real vLLM with hardly any room, prompts computed in pieces: requests are preempted, their pages given out anew."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.injector import KINDS

TOKENS = 60


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(
        tmp_path_factory.mktemp("tight"), {"scrub": "all"}, num_gpu_blocks_override=20, max_model_len=512,
        max_num_batched_tokens=64, max_num_seqs=4,
    )  # fmt: skip
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Six prompts of two families, and their answers."""
    flat = [prompt for family in prompts(3, families=2, each=3, shared=100, own=80) for prompt in family]
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]


def together(engine, asked, spoil_at: frozenset[int], seed: int) -> list[list[int]]:
    """All at once; in some steps a page of a running request is damaged."""
    rng = random.Random(seed)
    names = [engine.add(prompt, TOKENS) for prompt, _ in asked]
    for step in range(2000):
        if all(name in engine.ended for name in names):
            break
        engine.step()
        if step in spoil_at and engine.scheduler.running:
            name = rng.choice(engine.scheduler.running).request_id
            table = engine.scheduler.kv_cache_manager.get_block_ids(name)[0]
            number = rng.randrange(len(table))
            engine.damage(rng.choice(KINDS[:3]), table[number], table[number - 1], seed)
    return [engine.tokens[name] for name in names]


def test_preempted_requests_and_prompts_in_pieces_are_as_without_the_plugin(engine, asked):
    """No alarm, and everybody has his turn."""
    engine.forget()
    before = engine.preemptions()
    assert together(engine, asked, frozenset(), 0) == [right for _, right in asked]
    assert engine.preemptions() > before
    assert engine.metric("holdfast_pages_corrupt") == 0
    assert engine.metric("holdfast_chains_broken") == 0


def test_damage_amid_preemptions_spoils_nothing(engine, asked):
    """Pages are evicted, given out anew, sealed again; requests are computed again, in pieces."""
    for seed in range(3):
        engine.forget()
        assert together(engine, asked, frozenset(range(4, 300, 23)), seed) == [right for _, right in asked]
    assert engine.metric("holdfast_requests_recomputed") >= 3
    assert engine.metric("holdfast_requests_aborted") == 0
