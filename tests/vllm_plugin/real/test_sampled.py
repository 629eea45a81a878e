"""Real vLLM that verifies half of the pages that are hit; and sessions that take turns."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
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


def turns(engine, name: str, prompt: list[int], damage: bool) -> list[list[int]]:
    """A session of two turns; between them another request runs, and maybe a page of the session is damaged."""
    said = []
    engine.forget()
    for number, part in enumerate((prompt[:150], prompt[150:])):
        engine.turn(name, part)
        for _ in range(100):
            if len(engine.tokens.get(name, [])) == 8:
                break
            engine.step()
        said.append(engine.tokens.pop(name))
        if number == 0:
            other = engine.add(prompt[::-1][:40], 6)
            engine.step()
            if damage:
                assert engine.damage("zero", engine.tables[name][1])
            engine.run([other])
    return said


def test_a_session_goes_on_from_intact_pages(engine):
    """It keeps its pages between its turns. One that is found bad meanwhile is not read in the next one."""
    ((prompt,),) = prompts(52, families=1, each=1, shared=0, own=210)
    right = turns(engine, "s1", prompt, damage=False)
    corrupt, again = counted(engine, "pages_corrupt", "requests_recomputed")
    assert all(len(turn) == 8 for turn in right)

    assert turns(engine, "s2", prompt, damage=True) == right
    assert counted(engine, "pages_corrupt", "requests_recomputed") == [corrupt + 1, again + 1]
