"""Real vLLM with hardly any room, its OffloadingConnector beside ours: pages come and go while requests make room."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.test_beside_offloading import OFFLOADING

TOKENS = 40


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(
        tmp_path_factory.mktemp("tight"), {"scrub": "all"}, beside=[OFFLOADING, {}], num_gpu_blocks_override=24,
        max_model_len=512, max_num_batched_tokens=64, max_num_seqs=4,
    )  # fmt: skip
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Eight prompts of two families, and their answers."""
    flat = [prompt for family in prompts(81, families=2, each=4, shared=100, own=80) for prompt in family]
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]


def together(engine, asked, seed: int, every: int) -> list[list[int]]:
    """In any order, some later than others; now and then a page is damaged, here or where it was offloaded."""
    from tests.vllm_plugin.real.offload import Copies

    rng = random.Random(seed)
    order = rng.sample(range(len(asked)), len(asked))
    names: dict[int, str] = {}
    for step in range(2000):
        if order and not rng.randrange(3):
            number = order.pop()
            names[number] = engine.add(asked[number][0], TOKENS)
        if not order and all(name in engine.ended for name in names.values()):
            break
        engine.step()
        if every and step % every == every - 1:
            if rng.random() < 0.5 and engine.scheduler.running:
                table = engine.tables[rng.choice(engine.scheduler.running).request_id.rpartition("-")[0]]
                engine.damage("zero", rng.choice(table), seed=seed)
            else:
                rng.choice(Copies.latest.there)[rng.randrange(64)] = 1
    return [engine.tokens[names[number]] for number in range(len(asked))]


def test_pages_that_come_and_go_raise_no_alarm(engine, asked):
    """Some are brought back amid that, and nobody waits for ever."""
    brought, before = engine.metric("holdfast_pages_brought"), engine.preemptions()
    for seed in range(6):
        assert together(engine, asked, seed, 0) == [right for _, right in asked], f"seed {seed}"
    assert engine.metric("holdfast_pages_brought") > brought
    assert engine.preemptions() > before
    assert engine.metric("holdfast_pages_corrupt") == 0
    assert engine.metric("holdfast_chains_broken") == 0


def test_damage_amid_that_spoils_nothing(engine, asked):
    """Here or there."""
    for seed in range(10, 16):
        assert together(engine, asked, seed, 13) == [right for _, right in asked], f"seed {seed}"
    assert engine.metric("holdfast_pages_corrupt", where="scrub") > 0
    assert engine.metric("holdfast_pages_corrupt", where="brought") > 0
    assert engine.metric("holdfast_requests_aborted") == 0
