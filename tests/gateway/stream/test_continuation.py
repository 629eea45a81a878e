"""Which requests go on exactly on another server, and what that server is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.call import Endpoint
from gateway.stream.continuation import CARRIED, body, fresh, obstacle, repeats_obstacle
from tests.gateway.stream.fakes import call_for

COMPLETIONS = Endpoint.COMPLETIONS
TOOL = [{"type": "function", "function": {"name": "f"}}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}}]}]

EXACT = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
    {"ignore_eos": True},
    {"repetition_penalty": 1.2},
    {"min_tokens": 5},
    {"logit_bias": {"5": 3}},
    {"stop_token_ids": [7]},
    {"stop": "x"},
    {"allowed_token_ids": [1, 2]},
    {"frequency_penalty": 0.5},
    {"frequency_penalty": 0.5, "repetition_penalty": 1.0},
    {"seed": 7, "temperature": 0.0},
    {"seed": None},
    {"n": 3},
    {"user": "u"},
    {"metadata": {"a": "b"}},
    {"tools": TOOL, "tool_choice": "none"},
    {"tools": []},
    {"response_format": {"type": "text"}},
    {"logprobs": False},
    {"logprobs": None},
    {"top_logprobs": 0},
    {"presence_penalty": 0.0},
    {"include_reasoning": False},
    {"skip_special_tokens": False},
    {"chat_template_kwargs": {"x": 1}},
    {"new_field": None},
    {"new_field": False},
    {"logit_bias": {"5": 100}, "frequency_penalty": 0.1},
    {"logit_bias": {"5": 101}},
]
NOT_EXACT = [
    ({"messages": IMAGE}, "media in messages"),
    ({"tools": TOOL}, "tools"),
    ({"tools": TOOL, "tool_choice": "auto"}, "tools"),
    ({"seed": 7}, "seed"),
    ({"seed": 0, "temperature": 0.5}, "seed"),
    ({"frequency_penalty": 0.5, "repetition_penalty": 1.1}, "frequency_penalty with repetition_penalty"),
    ({"frequency_penalty": 0.5, "logit_bias": {"5": -101}}, "frequency_penalty with this logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"echo": True}, "echo"),
    ({"bad_words": ["x"]}, "bad_words"),
    ({"new_field": 1}, "new_field"),
    ({"top_logprobs": 2}, "top_logprobs"),
]


@pytest.mark.parametrize("said", EXACT, ids=str)
def test_what_depends_on_the_ids_alone_goes_on(said):
    """A request whose rest is a function of its ids has no obstacle."""
    assert obstacle(call_for(**said), spells_special=False) is None


@pytest.mark.parametrize(("said", "name"), NOT_EXACT, ids=str)
def test_what_depends_on_more_is_named(said, name):
    """A request that depends on state inside the engine is named by its feature, an unknown field by itself."""
    assert obstacle(call_for(**said), spells_special=False) == name


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({}, None),
        ({"best_of": 1}, None),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
    ],
)
def test_a_completion_has_obstacles_of_its_own(said, name):
    """Fields of completions: logprobs of 0 still asks for the chosen tokens', best_of and suffix cannot go on."""
    assert obstacle(call_for(COMPLETIONS, **said), spells_special=False) == name


@pytest.mark.parametrize(
    ("said", "named"),
    [({"ignore_eos": True}, True), ({"ignore_eos": True, "skip_special_tokens": False}, False), ({}, False)],
)
def test_special_tokens_in_the_text_need_a_tokenizer_here(said, named):
    """Where /detokenize would spell special tokens out that the client was not to see, the stream cannot go on."""
    assert (obstacle(call_for(**said), spells_special=True) is not None) is named


@given(
    st.lists(st.integers(0, 5), max_size=30), st.floats(-2, 2), st.dictionaries(st.integers(0, 5), st.floats(-90, 90))
)
def test_a_frequency_penalty_goes_on_as_a_bias(ids, penalty, bias):
    """Each emitted token is biased by minus penalty times its count, on top of the client's own bias."""
    call = call_for(frequency_penalty=penalty, logit_bias={str(token): value for token, value in bias.items()})

    asked = body(call, [1, 2], ids, 100)

    if penalty and ids:
        said = {int(token): value for token, value in asked["logit_bias"].items()}
        for token in {*ids, *bias}:
            assert said[token] == pytest.approx(bias.get(token, 0.0) - penalty * ids.count(token))
        assert said.keys() == {*ids, *bias}
    else:
        assert asked["logit_bias"] == call.body["logit_bias"]


@pytest.mark.parametrize(("count", "named"), [(50, False), (51, True), (0, False)])
def test_a_bias_beyond_vllms_clamp_is_an_obstacle(count, named):
    """vLLM clamps a bias at 100: a token so frequent that its penalty exceeds this cannot go on exactly."""
    assert (repeats_obstacle(call_for(frequency_penalty=2.0), [7] * count) is not None) is named
    assert repeats_obstacle(call_for(), [7] * count) is None


OURS = ("cache_salt", "priority")  # clients may not say them


def test_the_next_server_is_asked_for_the_rest():
    """Prompt and emitted ids are the prompt; max_tokens and min_tokens are less what was delivered; no stop strings."""
    call = call_for(min_tokens=10, stop=["x"], include_stop_str_in_output=True, stream_options={"include_usage": True})

    assert body(call, [1, 2], [3, 4, 5], 100) == {
        "model": "tiny",
        "prompt": [1, 2, 3, 4, 5],
        "stream_options": {"include_usage": True},
        "stream": True,
        "return_token_ids": True,
        "max_tokens": 97,
        "min_tokens": 7,
    }
    assert "min_tokens" not in body(call, [1], [2] * 10, 100)


def test_what_describes_the_generation_is_carried():
    """Every sampling field goes to the next server as the client said it; the gateway's own with it."""
    said = {name: {"model": "tiny", "logit_bias": {"1": 2}}.get(name, 1) for name in CARRIED if name not in OURS}
    said |= {"skip_special_tokens": False, "user": "u"}
    call = call_for(**said)
    ours = dict.fromkeys(OURS, "ours")
    call.body |= ours

    asked = body(call, [1], [], 9)

    assert {name: asked[name] for name in CARRIED} == said | ours


def test_a_choice_without_a_token_is_asked_for_anew_alone():
    """It is asked for with its own prompt, once, in the client's words, and without stop strings."""
    call = call_for(COMPLETIONS, prompt=["a", "b"], n=3, temperature=0.5, stop=["x"], include_stop_str_in_output=True)

    assert fresh(call, "b", 50) == {
        "model": "tiny",
        "prompt": "b",
        "n": 1,
        "temperature": 0.5,
        "max_tokens": 50,
        "stream": True,
        "return_token_ids": True,
    }
