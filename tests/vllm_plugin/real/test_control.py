"""vLLM as it is, without the plugin: what a damaged page does. Were it harmless, nobody would have to find it."""

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("control"), None)
    yield engine
    engine.stop()


def test_a_wrong_bit_in_a_shared_page_makes_wrong_answers_again_and_again(engine):
    """All who have the prefix get them, until the page happens to leave the cache."""
    ((mine, yours),) = prompts(1, families=1, each=2, shared=128, own=30)
    right = [engine.ask(mine, 16), engine.ask(yours, 16)]
    assert [engine.ask(mine, 16), engine.ask(yours, 16)] == right

    for seed in range(20):  # most bits of these random weights change nothing that can be seen
        assert engine.damage("flip", engine.tables["r1"][seed % 4], seed=seed)
    assert engine.damage("zero", engine.tables["r1"][1])
    wrong = [engine.ask(mine, 16), engine.ask(yours, 16)]

    assert wrong[0] != right[0]
    assert wrong[1] != right[1]
    assert [engine.ask(mine, 16), engine.ask(yours, 16)] == wrong


def test_a_wrong_bit_while_a_request_runs_makes_it_go_wrong(engine):
    """From the next token on."""
    ((prompt,),) = prompts(2, families=1, each=1, shared=128, own=30)
    right = engine.ask(prompt, 40)
    engine.forget()
    name = engine.add(prompt, 40)
    while len(engine.tokens.get(name, [])) < 10:
        engine.step()
    engine.damage("zero", engine.tables[name][1])

    (wrong,) = engine.run([name])
    assert wrong[:10] == right[:10]
    assert wrong != right
