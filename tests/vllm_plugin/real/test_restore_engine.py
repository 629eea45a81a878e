"""Real vLLM whose requests come with what another engine gave out for them: they go on as they would have there.

With hardly any room, prompts computed in pieces, a page store, adapters, and pages that go bad.
"""

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.test_adapters import adapter
from vllm_plugin.restore import IDS, KEY

TOKENS, BLOCK, PROMPT = 140, 32, 100
SEEDED = {"temperature": 1.0, "seed": 17}
SAMPLING = [{}, SEEDED, SEEDED | {"top_p": 0.9, "presence_penalty": 0.8, "repetition_penalty": 1.2}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory, store):
    engine = Engine(
        tmp_path_factory.mktemp("restore"), {"scrub": "all", "store": "test://here"}, num_gpu_blocks_override=40,
        max_model_len=512, max_num_batched_tokens=64, max_num_seqs=8, enable_lora=True, max_loras=1, max_lora_rank=8,
    )  # fmt: skip
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Prompts, how they are sampled, and their answers."""
    flat = [prompt for family in prompts(41, families=6, each=1, shared=60, own=40) for prompt in family]
    how = [SAMPLING[number % len(SAMPLING)] for number in range(len(flat))]
    return [(prompt, one, engine.ask(prompt, TOKENS, **one)) for prompt, one in zip(flat, how, strict=True)]


def go_on(engine, prompt, known, **sampling) -> str:
    """A request for which those tokens were given out elsewhere. Returns its name."""
    return engine.add(prompt, TOKENS, extra_args={KEY: {IDS: known}}, **sampling)


def test_a_request_goes_on_behind_any_token(engine, asked):
    """Greedy and seeded, and with penalties; its prompt, and what it had, are computed in pieces."""
    for prompt, how, right in asked[:3]:
        for known in (1, 31, 32, 77, TOKENS - 1):
            engine.forget()
            assert right[:known] + engine.run([go_on(engine, prompt, right[:known], **how)])[0] == right, known


def test_pages_of_what_was_given_out_are_found_here(engine, asked):
    """All that are full, of prompt and answer; in the store, when they are not here any more."""
    prompt, how, right = asked[1]
    known = right[:130]
    full = (PROMPT + len(known) - 1) // BLOCK
    engine.forget()
    engine.ask(prompt, TOKENS, **how)
    hits, loads = engine.metric("holdfast_prefix_hit_tokens"), engine.metric("holdfast_pages_loaded")
    assert known + engine.run([go_on(engine, prompt, known, **how)])[0] == right
    assert engine.metric("holdfast_prefix_hit_tokens") - hits == full * BLOCK > PROMPT

    engine.forget()
    assert known + engine.run([go_on(engine, prompt, known, **how)])[0] == right
    assert engine.metric("holdfast_pages_loaded") - loads == full


def test_a_bad_page_of_what_was_given_out_is_put_aside_and_computed(engine, asked, store):
    """That of tokens 128 to 159, of which the prompt had none."""
    prompt, how, right = asked[2]
    engine.forget()
    engine.ask(prompt, TOKENS, **how)
    engine.step()
    mine = bytes(engine.chains[name_of(engine, prompt, right, how)][4])
    (key,) = [key for key in store.pages if key.endswith(mine)]
    bad = store.pages[key]
    assert bad.manifest.position == 128
    store.pages[key] = bad._replace(payload=bytes([bad.payload[0] ^ 64]) + bad.payload[1:])
    engine.forget()
    before = engine.metric("holdfast_pages_corrupt", where="load")

    assert right[:110] + engine.run([go_on(engine, prompt, right[:110], **how)])[0] == right
    assert engine.metric("holdfast_pages_corrupt", where="load") == before + 1


def name_of(engine, prompt, right, how) -> str:
    """A request that has gone on, so that its chains are known."""
    name = go_on(engine, prompt, right[:110], **how)
    engine.run([name])
    return name


def test_requests_that_go_on_make_room_for_each_other(engine, asked):
    """They are preempted, and computed again, with all that they had."""
    engine.forget()
    before = engine.preemptions()
    names = [go_on(engine, prompt, right[:90], **how) for prompt, how, right in asked]
    assert engine.run(names) == [right[90:] for _, _, right in asked]
    assert engine.preemptions() > before


def test_a_page_that_goes_bad_spoils_nothing_of_a_request_that_went_on(engine, asked):
    """Its step is thrown away, and what it drew for it taken back."""
    for prompt, how, right in asked[:3]:
        engine.forget()
        name = go_on(engine, prompt, right[:70], **how)
        while len(engine.tokens.get(name, [])) < 5:
            engine.step()
        before = engine.metric("holdfast_requests_recomputed")
        assert engine.damage("flip", engine.tables[name][4])
        assert right[:70] + engine.run([name])[0] == right
        assert engine.metric("holdfast_requests_recomputed") > before


def test_a_request_of_an_adapter_goes_on(engine, asked, tmp_path):
    """With its adapter."""
    prompt, how, plain = asked[1]
    lora = adapter(tmp_path / "one", 1)
    right = engine.ask(prompt, TOKENS, lora=lora, **how)
    assert right != plain
    for known in (1, 60, 139):
        assert right[:known] + engine.run([go_on(engine, prompt, right[:known], lora=lora, **how)])[0] == right


def test_what_a_client_says_never_reaches_the_engine_as_tokens(engine, asked):
    """An id that there is not would end it: where nobody has read the argument, it means nothing."""
    prompt, how, right = asked[0]
    for said in ("[[[999999999]]]", [999999999], 7):
        assert engine.ask(prompt, TOKENS, extra_args={KEY: said}, **how) == right
