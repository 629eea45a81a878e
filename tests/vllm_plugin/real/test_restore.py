"""A real server that goes on with requests of another one, as a gateway asks it to: every kind in docs/continuing.md.

After how many places each kind is cut: HOLDFAST_CUTS, 3 unless said otherwise.
"""

import json
import os
import urllib.request

import pytest

from tests.vllm_plugin.real import kinds
from tests.vllm_plugin.real.kinds import CHAT, COMPLETIONS, GREEDY, KINDS, REASONING, SEEDED, chat, completion
from tests.vllm_plugin.real.restored import (
    READY_S_MAX,
    ask,
    continues,
    differences,
    refusal,
    server,
    stream,
    thinking_model,
)

CUTS = int(os.environ.get("HOLDFAST_CUTS", "3"))
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with server(tmp_path_factory.mktemp("server"), *TOOLS) as engine:
        engine.wait_ready(READY_S_MAX)
        continues(engine.url)
        yield engine.url


@pytest.fixture(scope="module")
def thinking(tmp_path_factory, url):
    """Another server, whose model thinks."""
    folder = tmp_path_factory.mktemp("thinking")
    with server(folder, *TOOLS, "--reasoning-parser", "qwen3", model=thinking_model(folder / "model")) as engine:
        engine.wait_ready(READY_S_MAX)
        continues(engine.url)
        yield engine.url


def test_the_status_says_that_it_continues_and_what_not(url):
    """With seeds."""
    told = continues(url)
    assert (told["protocol"], told["seeds"]) == (1, True)
    assert {"thinking_token_budget", "use_beam_search", "prompt_logprobs", "logprob_token_ids"} <= set(told["refused"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_goes_on_as_it_would_have(url, kind):
    """At each cut, as its client's own parser sees it, usage included."""
    cuts, found = differences(url, *KINDS[kind], CUTS)
    assert cuts
    assert found == []


@pytest.mark.parametrize("kind", REASONING)
def test_a_request_that_thinks_goes_on_as_it_would_have(thinking, kind):
    """Reasoning, alone and with all that follows it."""
    cuts, found = differences(thinking, *REASONING[kind], CUTS)
    assert cuts
    assert found == []


@pytest.mark.parametrize("more", [{}, {"include_stop_str_in_output": True}, {"min_tokens": 9}, {"n": 2}])
def test_a_stop_string_that_is_cut_in_two_is_found(url, more):
    """It is part of three tokens, in the middle of the answer."""
    path, body = chat(**SEEDED)
    whole = stream(url, path, body)
    texts = [choice["delta"]["content"] for choice in whole.choices[0] if choice.get("token_ids")]
    stop = "".join(texts)[sum(map(len, texts[:12])) - 2 :][: len(texts[12]) + 4]

    cuts, found = differences(url, path, body | {"stop": [stop]} | more, max(CUTS, 12))
    assert cuts >= 3
    assert found == []


def test_a_token_that_stops_is_found(url):
    """The fifteenth."""
    path, body = chat(**SEEDED)
    ids = [token for chunk in stream(url, path, body).chunks[0] for token in chunk]
    cuts, found = differences(url, path, body | {"stop_token_ids": [ids[14]]}, CUTS)
    assert cuts
    assert found == []


@pytest.mark.parametrize("body", [
    chat(**SEEDED), chat(n=2, **SEEDED), chat(60, structured_outputs={"regex": "[a-c]{20}"}, **SEEDED),
    completion(echo=True, **SEEDED),
])  # fmt: skip
def test_a_plain_answer_goes_on_too(url, body):
    """All at once, as it would have been."""
    path, body = body
    known = stream(url, path, body).cut(9)
    again = ask(url, path, body | {"vllm_xargs": {"holdfast_resume": json.dumps(known)}})
    whole = ask(url, path, body)
    assert (again["choices"], again["usage"]) == (whole["choices"], whole["usage"])


def test_what_had_ended_ends_again(url):
    """All tokens are known, and only why it ended is not: by length, and by the model; one of two choices."""
    for path, body in (KINDS["greedy"], KINDS["min_tokens"], KINDS["n=3, ended early"], KINDS["choice"]):
        whole = stream(url, path, body)
        again = stream(url, path, body, whole.chunks)
        assert again.beside(whole.chunks) == whole.beside(whole.chunks)
        assert again.last == whole.last


@pytest.mark.parametrize("stop", [{}, {"stream": True}])
@pytest.mark.parametrize("said", [
    "", "[", "{}", "7", '"x"', "[[[]]", "[[[7.5]]]", "[[[true]]]", '[[["7"]]]', "[[[-1]]]", "[[[8192]]]", "[[[1e400]]]",
    "[[[99999999999999999999]]]", "[[7]]", "[]", "[[], []]", "[" * 5000, json.dumps([[[7] * 25]]), " " * 10_000,
    [1, 2], 7, 0.5,
])  # fmt: skip
def test_a_bad_argument_is_a_400_and_the_engine_lives(url, said, stop):
    """Named, before an answer begins; nothing of it is repeated."""
    code, text = refusal(url, CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 24,
                                     "vllm_xargs": {"holdfast_resume": said}} | stop)  # fmt: skip
    assert code == 400, text
    assert "vllm_xargs.holdfast_resume" in text
    assert "8192" not in text or "there are 8192" in text
    assert ask(url, CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1})["usage"]


def test_the_form_inside_vllm_cannot_be_sent(url):
    """By vLLM's own check."""
    code, _ = refusal(url, *completion(vllm_xargs={"holdfast_resume": {"ids": [999999]}}))
    assert code == 400


@pytest.mark.parametrize(("body", "named"), [
    (chat(logprobs=True), "logprobs"),
    (chat(prompt_logprobs=1), "prompt_logprobs"),
    (chat(logprob_token_ids=[5, 6], logprobs=True), "logprob_token_ids"),
    ((COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 4, "n": 2}), ""),
])  # fmt: skip
def test_what_is_not_continued_is_refused_by_name(url, body, named):
    """Of plain answers."""
    path, body = body
    code, text = refusal(url, path, body | {"vllm_xargs": {"holdfast_resume": "[[[7]]]"}})
    assert code == 400
    assert named in text
    assert "vllm_xargs.holdfast_resume" in text


def test_a_budget_for_thinking_is_refused_by_name(thinking):
    """vLLM itself refuses it where nobody thinks."""
    path, body = chat(thinking_token_budget=5, vllm_xargs={"holdfast_resume": "[[[7]]]"}, **GREEDY)
    code, text = refusal(thinking, path, body)
    assert (code, "thinking_token_budget is not continued" in text) == (400, True)


def test_a_seed_and_a_long_prompt_do_not_end_the_engine(url):
    """In vLLM on the CPU they do."""
    path, body = COMPLETIONS, {"prompt": [300 + 7 * i % 5000 for i in range(3000)], "max_tokens": 12} | SEEDED
    cuts, found = differences(url, path, body, CUTS)
    assert (cuts > 0, found) == (True, [])


def test_what_was_given_out_before_is_not_counted_again(url):
    """In vLLM's own metrics."""
    path, body = chat(**SEEDED)
    known = stream(url, path, body).cut(13)
    before = generated(url)
    stream(url, path, body, known)
    assert generated(url) - before == 24 - sum(map(len, known[0]))


def generated(url: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


def test_every_kind_ends_as_it_is_meant_to(url):
    """Those that say how: else a cut would say little."""
    ends = {kind: [one[-1]["finish_reason"] for one in stream(url, *KINDS[kind]).choices] for kind in (
        "min_tokens", "repetition_detection", "regex", "choice", "grammar", "tool, auto", "n=3, ended early",
        "json_schema, penalties",
    )}  # fmt: skip
    assert ends.pop("repetition_detection") == ["repetition"]
    assert ends.pop("tool, auto") == ["tool_calls"]
    assert sorted(ends.pop("n=3, ended early")) == ["length", "stop", "stop"]
    assert set(map(tuple, ends.values())) == {("stop",)}
    assert kinds.EOS == 1
