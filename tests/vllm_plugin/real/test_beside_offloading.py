"""Real vLLM, its OffloadingConnector beside ours: pages go to other memory and come back, not always as they were."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.weights import NORM

TOKENS = 24
BLOCK = 32
OURS: dict = {}
SMALL = {"num_gpu_blocks_override": 40, "max_model_len": 512}
OFFLOADING = {
    "kv_connector": "OffloadingConnector", "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_name": "Offload", "spec_module_path": "tests.vllm_plugin.real.offload", "cpu_bytes_to_use": 64 << 20,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("beside"), {}, beside=[OURS, OFFLOADING], **SMALL)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def offloaded(engine):
    from tests.vllm_plugin.real.offload import Copies

    return Copies.latest


@pytest.fixture(scope="module")
def asked(engine, offloaded):
    """Prompts of two families, and their answers; their pages are offloaded."""
    flat = [prompt for family in prompts(31, families=2, each=2, shared=150, own=60) for prompt in family]
    asked = [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]
    for _ in range(3):
        engine.step()
    assert offloaded.stored
    return asked


def forget(engine) -> None:
    """What is here, not what is offloaded."""
    assert engine.scheduler.reset_prefix_cache()


def counted(engine) -> dict[str, float]:
    names = ("pages_brought", "pages_corrupt", "requests_recomputed", "requests_aborted", "chains_broken")
    return {name: engine.metric(f"holdfast_{name}") for name in names}


def test_pages_come_back_and_are_what_they_were(engine, asked, offloaded):
    """They are read in the step in which they are looked at: nobody waits longer."""
    forget(engine)
    before, loaded = counted(engine), offloaded.loaded
    assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]
    assert offloaded.loaded - loaded >= 12
    assert counted(engine) == before | {"pages_brought": before["pages_brought"] + offloaded.loaded - loaded}


def test_a_page_that_came_back_is_hit_like_any_other(engine, asked, offloaded):
    """It has its seal in its new block."""
    loaded, hits = offloaded.loaded, engine.metric("holdfast_prefix_hit_tokens")
    before = counted(engine)
    assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]
    assert offloaded.loaded == loaded
    assert engine.metric("holdfast_prefix_hit_tokens") - hits == 4 * (210 // BLOCK * BLOCK)
    assert counted(engine) == before


def test_pages_damaged_where_they_were_offloaded_are_found(engine, asked, offloaded):
    """In the step that reads them; it is thrown away, and they are computed, and not asked for again."""
    for seed in range(4):
        rng = random.Random(seed)
        forget(engine)
        before = counted(engine)
        layer = rng.choice(offloaded.there)
        used = [number for number in range(len(layer)) if layer[number].any()]
        for number in used:
            layer[number, rng.randrange(layer.shape[1])] ^= 64
        assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked], f"seed {seed}"
        now = counted(engine)
        assert now["requests_aborted"] == 0
        if seed == 0:
            assert now["pages_corrupt"] > before["pages_corrupt"]
            assert now["requests_recomputed"] > before["requests_recomputed"]
            assert engine.metric("holdfast_pages_corrupt", where="brought") == now["pages_corrupt"]
        else:
            assert now == before  # nobody asks for them any more


def test_many_at_once(engine, asked):
    """Others too: nobody waits for ever."""
    forget(engine)
    names = [engine.add(prompt, TOKENS) for prompt, _ in asked * 2]
    assert engine.run(names) == [right for _, right in asked * 2]


def test_pages_of_other_weights_are_not_believed_when_they_come_back(engine, offloaded):
    """The other connector knows nothing of weights: it brings what was computed with those before."""
    ((prompt,),) = prompts(32, families=1, each=1, shared=0, own=210)
    before = engine.ask(prompt, TOKENS)
    for _ in range(3):
        engine.step()
    engine.call("holdfast_scale", NORM, 8.0)
    loaded, unknown = offloaded.loaded, engine.metric("holdfast_pages_corrupt", kind="absent", where="brought")

    now = engine.ask(prompt, TOKENS)

    assert now == engine.ask(prompt, TOKENS, salt="of its own pages")
    assert now != before
    brought = offloaded.loaded - loaded
    assert brought == 210 // BLOCK
    assert engine.metric("holdfast_pages_corrupt", kind="absent", where="brought") == unknown + brought
    engine.call("holdfast_scale", NORM, 1 / 8)
    assert engine.ask(prompt, TOKENS) == before
