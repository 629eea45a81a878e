"""Real vLLM whose weights change, by each of its ways and behind its back: no page of before is used."""

import pytest

from tests.vllm_plugin.real import weights
from tests.vllm_plugin.real.engine import MODEL, Engine, prompts
from tests.vllm_plugin.real.weights import NORM, scale

TOKENS = 24
FACTOR = 8.0  # of a power of two, so that the way back is exact


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine("in-place", weights.InPlace)
    engine = Engine(
        tmp_path_factory.mktemp("weights"), {"scrub": "all", "weights": 1.0},
        weight_transfer_config=WeightTransferConfig(backend="in-place"),
    )  # fmt: skip
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def prompt():
    ((one,),) = prompts(41, families=1, each=1, shared=150, own=30)
    return one


@pytest.fixture(scope="module")
def answers(engine, prompt):
    """With the weights as they are, and multiplied."""
    found = {}
    for factor in (1.0, FACTOR):
        set_to(engine, factor)
        engine.forget()
        found[factor] = engine.ask(prompt, TOKENS)
    set_to(engine, 1.0)
    assert found[1.0] != found[FACTOR]
    return found


def set_to(engine, factor: float) -> None:
    """From whatever they are, by the worker's own reload and a method that the operator added."""
    engine.call("reload_weights", None, str(MODEL))
    if factor != 1.0:
        engine.call("holdfast_scale", NORM, factor)


def by_method(engine):
    engine.call("holdfast_scale", NORM, FACTOR)


def by_update(engine):
    engine.call("start_weight_update")
    engine.call("update_weights", {"factors": {NORM: FACTOR / 2}})
    engine.call("update_weights", {"factors": {NORM: 2.0}})
    engine.call("finish_weight_update")


def by_reload(engine, folder):
    engine.call("reload_weights", None, str(weights.checkpoint(MODEL, folder / "other", FACTOR)))


@pytest.mark.parametrize("way", [by_method, by_update, by_reload])
def test_after_a_change_no_page_of_before_is_hit(engine, prompt, answers, way, tmp_path):
    """The answer is that of the new weights from the first token on; and of the old ones, when they are back."""
    set_to(engine, 1.0)
    assert [engine.ask(prompt, TOKENS) for _ in range(2)] == [answers[1.0]] * 2  # the second one hits
    changes, hits = engine.metric("holdfast_models_changed"), engine.metric("holdfast_prefix_hit_tokens")
    way(engine, tmp_path) if way is by_reload else way(engine)

    assert engine.ask(prompt, TOKENS) == answers[FACTOR]
    assert engine.metric("holdfast_models_changed") > changes
    assert engine.metric("holdfast_models_changed_unannounced") == 0
    hit = engine.metric("holdfast_prefix_hit_tokens") - hits
    assert engine.ask(prompt, TOKENS) == answers[FACTOR]
    assert engine.metric("holdfast_prefix_hit_tokens") - hits > hit  # pages of the new weights are
    set_to(engine, 1.0)
    assert engine.ask(prompt, TOKENS) == answers[1.0]
    assert engine.metric("holdfast_pages_corrupt") == 0


def test_a_request_in_flight_goes_on_as_if_its_text_had_been_the_prompt_of_the_new_model(engine, prompt, answers):
    """What it gave out stays; nothing behind that is computed from pages of both."""
    set_to(engine, 1.0)
    engine.forget()
    name = engine.add(prompt, TOKENS)
    while len(engine.tokens.get(name, [])) < 10:
        engine.step()
    by_method(engine)
    (mixed,) = engine.run([name])
    engine.forget()

    assert mixed[:10] == answers[1.0][:10]
    assert mixed[10:] == engine.ask([*prompt, *mixed[:10]], TOKENS - 10)
    assert engine.ended[name] == "length"
    set_to(engine, 1.0)


def test_a_call_that_changes_nothing_voids_nothing(engine, prompt, answers):
    """Weights are read again, and are the same."""
    set_to(engine, 1.0)
    engine.ask(prompt, TOKENS)
    changes = engine.metric("holdfast_models_changed")
    engine.call("holdfast_scale", NORM, 1.0)
    engine.call("reload_weights", None, str(MODEL))
    name = engine.add(prompt, TOKENS)

    assert engine.run([name]) == [answers[1.0]]
    assert engine.metric("holdfast_models_changed") == changes


def test_what_nobody_announced_is_found_in_a_cycle_and_ends_what_may_be_mixed(engine, prompt, answers):
    """A request that gave tokens out meanwhile ends with an error; all later ones are of the new weights alone."""
    set_to(engine, 1.0)
    engine.ask(prompt, TOKENS)
    name = engine.add(prompt, 400)
    while len(engine.tokens.get(name, [])) < 10:
        engine.step()
    scale(engine.model, FACTOR)
    engine.run([name])

    assert engine.ended[name] == "error"
    assert engine.ask(prompt, TOKENS) == answers[FACTOR]
    assert engine.metric("holdfast_models_changed_unannounced") == 1
    assert 0 < engine.metric("holdfast_weights_cycle_seconds") < 60
    set_to(engine, 1.0)
    assert engine.ask(prompt, TOKENS) == answers[1.0]
