"""Real vLLM with attention that looks back 96 tokens: pages are left behind, and hits begin amid a chain."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.injector import KINDS

TOKENS = 40
SLIDING = {"layer_types": ["sliding_attention"] * 4, "sliding_window": 96}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("window"), {"scrub": "all"}, hf_overrides=SLIDING)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Prompts that share more than a window, and their answers."""
    ((*some,),) = prompts(31, families=1, each=3, shared=200, own=70)
    found = []
    for prompt in some:
        engine.forget()
        found.append((prompt, engine.ask(prompt, TOKENS)))
    return found


def test_hits_behind_a_window_are_verified_and_no_hole(engine, asked):
    """Those that attention does not reach are not looked at, and not missed."""
    hits = engine.metric("holdfast_prefix_hit_tokens")
    for _ in range(2):
        assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]
    names = [engine.add(prompt, TOKENS) for prompt, _ in asked]
    assert engine.run(names) == [right for _, right in asked]

    assert engine.metric("holdfast_prefix_hit_tokens") > hits
    assert engine.metric("holdfast_chains_broken") == 0
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_damage_within_the_window_is_found(engine, asked):
    """Between requests, and while one runs."""
    for seed in range(6):
        rng = random.Random(seed)
        (prompt, right), (first, _) = rng.sample(asked, 2)
        engine.forget()
        engine.ask(first, TOKENS)
        name = engine.add(prompt, TOKENS)
        while len(engine.tokens.get(name, [])) < 5:
            engine.step()
        table = engine.tables[name]
        number = len(table) - 2 - rng.randrange(2)
        corrupt = engine.metric("holdfast_pages_corrupt")
        engine.damage(rng.choice(KINDS[:3]), table[number], table[number - 1], seed)

        assert engine.run([name]) == [right], f"seed {seed}"
        assert engine.metric("holdfast_pages_corrupt") > corrupt
        assert engine.ask(prompt, TOKENS) == right, f"seed {seed}"
    assert engine.metric("holdfast_chains_broken") == 0
