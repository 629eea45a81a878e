"""Real vLLM with what an operator may say instead of the defaults; sessions that take turns."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.injector import KINDS

TOKENS = 12
FULL = 160  # of 180 tokens, in pages of 32


def asked(engine):
    flat = [prompt for family in prompts(51, families=2, each=3, shared=100, own=80) for prompt in family]
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]


def counted(engine, *names: str) -> list[float]:
    return [engine.metric(f"holdfast_{name}") for name in names]


@pytest.fixture(scope="module")
def aborting(tmp_path_factory):
    settings = {"verify": "off", "scrub": "all", "on_corruption": "abort"}
    engine = Engine(tmp_path_factory.mktemp("aborting"), settings)
    yield engine
    engine.stop()


def test_with_verify_off_nobody_waits_and_abort_ends_who_read_a_bad_page(aborting):
    """It is found after the forward pass that reads it: not one token of it leaves, and then all is right again."""
    engine = aborting
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


def test_with_abort_who_runs_with_a_bad_page_ends(aborting):
    """At once, though nothing wrong was given out."""
    engine = aborting
    (prompt, right), *_ = asked(engine)
    name = engine.add(prompt, TOKENS)
    while len(engine.tokens.get(name, [])) < 4:
        engine.step()
    engine.damage("zero", engine.tables[name][0])
    (tokens,) = engine.run([name])
    assert engine.ended[name] == "error"
    assert tokens == right[: len(tokens)]


@pytest.fixture(scope="module")
def sampling(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("sampling"), {"verify": "sampled:0.5", "scrub": "all"})
    yield engine
    engine.stop()


def test_half_of_the_pages_that_are_hit_are_verified(sampling):
    """The others are believed."""
    engine = sampling
    known = asked(engine)
    verified, hits = counted(engine, "pages_verified", "prefix_hit_tokens")
    for _ in range(5):
        assert [engine.ask(prompt, TOKENS) for prompt, _ in known] == [right for _, right in known]
    seen, hit = engine.metric("holdfast_pages_verified") - verified, engine.metric("holdfast_prefix_hit_tokens") - hits
    assert hit == 5 * len(known) * FULL
    assert 0.3 < seen / (hit / 32) < 0.7
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_what_the_gate_does_not_look_at_is_found_after_the_step_that_reads_it(sampling):
    """Both find their part, and every answer is right."""
    engine = sampling
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


def turns(engine, name: str, prompt: list[int], damage: bool) -> list[list[int]]:
    """A session of two turns; between them another request runs, and maybe a page of the session is damaged."""
    said = []
    engine.forget()
    for number, part in enumerate((prompt[:150], prompt[150:])):
        engine.turn(name, part)
        while len(engine.tokens.get(name, [])) < 8 or engine.scheduler.running:
            engine.step()
        said.append(engine.tokens.pop(name))
        if number == 0:
            other = engine.add(prompt[::-1][:40], 6)
            engine.step()
            if damage:
                assert engine.damage("zero", engine.tables[name][1])
            engine.run([other])
    return said


def test_a_session_goes_on_from_intact_pages(sampling):
    """It keeps its pages between its turns. One that is found bad meanwhile is not read in the next one."""
    engine = sampling
    ((prompt,),) = prompts(52, families=1, each=1, shared=0, own=210)
    right = turns(engine, "s1", prompt, damage=False)
    corrupt, again = counted(engine, "pages_corrupt", "requests_recomputed")
    assert all(len(turn) == 8 for turn in right)

    assert turns(engine, "s2", prompt, damage=True) == right
    assert counted(engine, "pages_corrupt", "requests_recomputed") == [corrupt + 1, again + 1]
