"""Real vLLM that verifies half of the pages that are hit."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine
from tests.vllm_plugin.real.injector import KINDS
from tests.vllm_plugin.real.test_abort import FULL, TOKENS, asked, counted


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("sampling"), {"verify": "sampled:0.5", "scrub": "all"})
    yield engine
    engine.stop()


def test_half_of_the_pages_that_are_hit_are_verified(engine):
    """The others are believed."""
    known = asked(engine)
    verified, hits = counted(engine, "pages_verified", "prefix_hit_tokens")
    for _ in range(5):
        assert [engine.ask(prompt, TOKENS) for prompt, _ in known] == [right for _, right in known]
    seen, hit = engine.metric("holdfast_pages_verified") - verified, engine.metric("holdfast_prefix_hit_tokens") - hits
    assert hit == 5 * len(known) * FULL
    assert 0.3 < seen / (hit / 32) < 0.7
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_what_the_gate_does_not_look_at_is_found_after_the_step_that_reads_it(engine):
    """Both find their part, and every answer is right."""
    known = asked(engine)
    for seed in range(16):
        prompt, right = known[seed % len(known)]
        name = engine.add(prompt, TOKENS)
        engine.run([name])
        table = engine.tables[name]
        number = seed % 5
        if engine.damage(random.Random(seed).choice(KINDS[:3]), table[number], table[(number + 1) % 5], seed):
            assert engine.ask(prompt, TOKENS) == right, f"seed {seed}"
    assert engine.metric("holdfast_pages_corrupt", where="gate") > 0
    assert engine.metric("holdfast_pages_corrupt", where="scrub") > 0
    assert engine.metric("holdfast_requests_aborted") == 0
