"""Real vLLM that verifies no hits, and ends every request that reads a bad page: what an operator may ask for."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts

TOKENS = 12
FULL = 160  # of 180 tokens, in pages of 32


def asked(engine):
    flat = [prompt for family in prompts(51, families=2, each=3, shared=100, own=80) for prompt in family]
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]


def counted(engine, *names: str) -> list[float]:
    return [engine.metric(f"holdfast_{name}") for name in names]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    settings = {"verify": "off", "scrub": "all", "on_corruption": "abort"}
    engine = Engine(tmp_path_factory.mktemp("aborting"), settings)
    yield engine
    engine.stop()


def test_with_verify_off_nobody_waits_and_abort_ends_who_read_a_bad_page(engine):
    """It is found after the forward pass that reads it: not one token of it leaves, and then all is right again."""
    known = asked(engine)
    hits = engine.metric("holdfast_prefix_hit_tokens")
    assert [engine.ask(prompt, TOKENS) for prompt, _ in known] == [right for _, right in known]
    assert counted(engine, "pages_verified", "pages_corrupt") == [0, 0]
    assert engine.metric("holdfast_prefix_hit_tokens") == hits + len(known) * FULL

    for seed in range(4):
        prompt, right = known[seed]
        name = engine.add(prompt, TOKENS)
        engine.run([name])
        table = engine.tables[name]
        assert engine.damage(random.Random(seed).choice(["flip", "zero", "swap"]), table[1], table[2], seed)
        name = engine.add(prompt, TOKENS)
        (tokens,) = engine.run([name])
        assert (tokens, engine.ended[name]) == ([], "error"), f"seed {seed}"
        assert engine.ask(prompt, TOKENS) == right, f"seed {seed}"
    assert engine.metric("holdfast_requests_aborted") == 4
    assert engine.metric("holdfast_requests_recomputed") == 0


def test_with_abort_who_runs_with_a_bad_page_ends(engine):
    """At once, though nothing wrong was given out."""
    (prompt, right), *_ = asked(engine)
    name = engine.add(prompt, TOKENS)
    while len(engine.tokens.get(name, [])) < 4:
        engine.step()
    engine.damage("zero", engine.tables[name][0])
    (tokens,) = engine.run([name])
    assert engine.ended[name] == "error"
    assert tokens == right[: len(tokens)]
