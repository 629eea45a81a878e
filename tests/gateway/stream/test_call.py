"""What a client may ask: parsed, checked, and refused with the field at fault."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.call import DROPPED, FORBIDDEN, Bounds, Call, Endpoint
from gateway.stream.wire import encode
from guards.refusal import Reason, Refused

CHAT, COMPLETIONS = Endpoint.CHAT, Endpoint.COMPLETIONS
HI = [{"role": "user", "content": "Hi"}]


def chat(**said) -> Call:
    return Call(CHAT, json.dumps({"model": "m", "messages": HI} | said).encode(), "r", Bounds())


def completion(prompt="Hi", **said) -> Call:
    return Call(COMPLETIONS, json.dumps({"model": "m", "prompt": prompt} | said).encode(), "r", Bounds())


def refused(make, *given, **said) -> Refused:
    with pytest.raises(Refused) as caught:
        make(*given, **said)
    assert caught.value.reason is Reason.INVALID
    return caught.value


WRONG = [
    ("model", 7), ("model", None), ("stream", "yes"), ("n", 0), ("n", -1), ("n", "2"), ("n", 1.5), ("max_tokens", 0),
    ("max_tokens", -5), ("max_tokens", 1 << 40), ("max_tokens", "9"), ("stop", 7), ("stop", [7]), ("min_tokens", -1),
    ("temperature", "hot"), ("frequency_penalty", []), ("presence_penalty", {}), ("logit_bias", [1]),
    ("include_stop_str_in_output", "no"), ("skip_special_tokens", 0), ("return_token_ids", 1),
    ("include_reasoning", "x"), ("vllm_xargs", []), ("stream_options", []), ("n", 17), ("stop", [""]), ("stop", ""),
    ("stop", ["x"] * 17),
]  # fmt: skip


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_that_cannot_be_is_refused_by_its_name(make, name, value):
    """Every field that a budget or continuation depends on is checked; the refusal names it, as param and in words."""
    refusal = refused(make, **{name: value})

    assert refusal.param == name
    assert name in refusal.detail


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(chat, "messages", "Hi"), (chat, "messages", ["Hi"]), (chat, "max_completion_tokens", 0),
     (completion, "best_of", "x")],
)  # fmt: skip
def test_a_field_of_one_endpoint_is_refused_by_its_name(make, name, value):
    """Fields that only one endpoint has are checked there."""
    assert refused(make, **{name: value}).param == name


@pytest.mark.parametrize(("endpoint", "missing"), [(CHAT, "messages"), (COMPLETIONS, "prompt"), (CHAT, "model")])
def test_a_missing_field_is_named(endpoint, missing):
    """Without its model or its prompt a request is refused, and told what is missing."""
    body = {"model": "m", "messages": HI, "prompt": "Hi"}
    del body[missing]

    assert refused(Call, endpoint, json.dumps(body).encode(), "r", Bounds()).param == missing


def test_a_nested_field_is_named_with_its_parent():
    """The refusal of a nested field names the way to it."""
    assert refused(chat, stream_options={"include_usage": "yes"}).param == "stream_options.include_usage"


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_fields_that_steer_the_engine_are_refused(make, name):
    """What could name hosts or inject engine state is refused; a null of it is not."""
    assert refused(make, **{name: {"a": 1}}).param == name
    assert make(**{name: None}).model == "m"


def test_our_own_engine_arguments_are_refused():
    """vllm_xargs of the plugin's may not come from clients; others pass."""
    assert refused(chat, vllm_xargs={"holdfast_resume": 1}).param == "vllm_xargs"
    assert chat(vllm_xargs={"other": 1}).body["vllm_xargs"] == {"other": 1}


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize(
    "name", ["kv_transfer_params", "kv_x", "ec_transfer_params", "ec_x", "priority", "session_id", "holdfast_x"]
)
def test_engine_arguments_that_vllm_reads_as_its_own_fields_are_refused(make, name):
    """What may not be said as a field may not be said through vllm_xargs either; the refusal names it."""
    refusal = refused(make, vllm_xargs={"fine": 1, name: 1})

    assert (refusal.param, f"vllm_xargs.{name} " in refusal.detail) == ("vllm_xargs", True)


@pytest.mark.parametrize("name", ["priority", "cache_salt", "request_id", "session_id", "stream_interval"])
def test_each_field_that_steers_the_engine_quietly_is_dropped(name):
    """Queues, salts, ids and how long a stream is silent never reach a server, nor do they refuse the request."""
    assert name not in chat(**{name: 7}).upstream_body(5)


@pytest.mark.parametrize("key", ["x", "", "1.5", "-1", " 1", "1\n", "٣", "1" * 11])
def test_a_bias_on_what_is_no_token_id_is_refused(key):
    """vLLM fails on such keys with a status of its own making; here they are the request's fault."""
    assert refused(chat, logit_bias={"5": 1.0, key: 1.0}).param == "logit_bias"
    assert chat(logit_bias={"5": 1.0, "4294967295": -1}).body["logit_bias"] == {"5": 1.0, "4294967295": -1}


@pytest.mark.parametrize("depth", [100, 300, 500, 900, 950, 980, 990, 1000, 5000])
@pytest.mark.parametrize("level", [("[", "]"), ('{"a":', "}")])
def test_deep_content_is_parsed_or_refused(depth, level):
    """However deep a content part is nested, it is refused or can be written for a server; nothing else is raised."""
    part = level[0] * depth + "7" + level[1] * depth
    raw = '{"model":"m","messages":[{"role":"user","content":[{"type":"x","a":' + part + "}]}]}"
    with suppress(Refused):
        assert encode(Call(CHAT, raw.encode(), "r", Bounds()).upstream_body(5))


def test_fields_that_clients_send_innocently_are_dropped():
    """Priority, cache salt and ids of requests are the gateway's own, and everything else goes up as it came."""
    call = chat(**dict.fromkeys(DROPPED, "x"), whatever={"deep": [1]}, temperature=0.5)

    assert call.body == {"model": "m", "messages": HI, "whatever": {"deep": [1]}, "temperature": 0.5}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("Hi", ["Hi"]), ("", [""]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [[1], [2, 3]]),
     (["a", [1]], ["a", [1]])],
)  # fmt: skip
def test_a_prompt_is_one_or_many(prompt, prompts):
    """A string or a list of token ids is one prompt, a list of either is many; each has n answers."""
    call = completion(prompt, n=3)

    assert call.prompts == prompts
    assert call.choices == 3 * len(prompts)


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], [True], [-1], [1 << 31], [1.5], [None], [["a"]], {}, None, 7])
def test_a_prompt_that_is_neither_is_refused(prompt):
    """Anything that is neither text nor token ids is refused as the prompt's fault."""
    assert refused(completion, prompt).param == "prompt"


def test_many_prompts_are_bounded():
    """So many prompts may be sent at once and no more, and so many answers in all: each may become a leg."""
    assert completion(["x"] * 64, n=1).choices == 64
    assert completion(["x"] * 4, n=16).choices == 64
    assert refused(completion, ["x"] * 5, n=16).param == "n"
    assert refused(completion, ["x"] * 65).param == "prompt"


@pytest.mark.parametrize(
    ("made", "tokens"),
    [(lambda: chat(), None), (lambda: chat(max_tokens=5), 5), (lambda: chat(max_tokens=5, max_completion_tokens=7), 7),
     (lambda: completion(), 16), (lambda: completion(max_tokens=None), 16), (lambda: completion(max_tokens=9), 9)],
)  # fmt: skip
def test_max_tokens_is_what_the_client_said_or_vllms_default(made, tokens):
    """A chat may leave the length to the model; a completion has vLLM's default of 16, also for a null."""
    assert made().max_tokens == tokens


PARTS = {
    "typed": {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}},
    "upper case": {"type": "image_url", "image_url": {"url": "HTTP://10.0.0.1/x"}},
    "a file": {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    "another kind": {"type": "video_url", "video_url": {"url": "https://x/y"}},
    "a kind that is new": {"type": "smell", "at": ["ftp://x"]},
    "without a type": {"image_url": "http://10.0.0.1/x"},
    "with a null type": {"type": None, "audio_url": {"url": "http://10.0.0.1/x"}},
    "text with a uuid": {"type": "text", "text": "", "uuid": "1", "image_url": "http://10.0.0.1/x"},
    "behind blanks": {"type": "image_url", "image_url": {"url": " " * 5000 + "http://10.0.0.1/x"}},
    "one slash": {"type": "image_url", "image_url": {"url": "https:/a"}},
    "a file without slashes": {"type": "image_url", "image_url": {"url": "file:/etc/passwd"}},
    "a file in upper case": {"type": "image_url", "image_url": {"url": "FILE:/x"}},
    "behind a blank": {"type": "image_url", "image_url": {"url": " \n file:/x"}},
    "no scheme at all": {"type": "image_url", "image_url": {"url": "//x://y"}},
    "deep inside": {"type": "image_url", "a": [{"b": [{"c": ["x", "s3:bucket"]}]}]},
    "not quite data": {"type": "image_url", "image_url": {"url": "data-http://10.0.0.1/x"}},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("role", ["user", "tool"])
def test_media_by_url_is_refused(part, role):
    """However vLLM would come to fetch it, an address inside a message is refused, unless configured."""
    said = [{"role": "system", "content": "x"}, {"role": role, "content": [{"type": "text", "text": "x"}, part]}]

    refusal = refused(chat, messages=said)
    allowed = Call(CHAT, json.dumps({"model": "m", "messages": said}).encode(), "r", Bounds(media_urls=True))

    assert (refusal.param, "messages[1]" in refusal.detail) == ("messages", True)
    assert allowed.has_media


@pytest.mark.parametrize(
    ("content", "media"),
    [("see http://x", False), ([{"type": "text", "text": "see http://x"}], False), ([{"text": "http://x"}], False),
     (["http://x"], False), (None, False),
     ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,//:"}}], True),
     ([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}], True),
     ([{"type": "image_url", "image_url": {"url": "DATA:image/png;base64,x"}}], True),
     ([{"type": "image_url", "image_url": {"url": " data:image/png;base64,x", "detail": "low"}}], True)],
)  # fmt: skip
def test_text_is_not_media_and_media_is_noticed(content, media):
    """An address in text is text; media that came with the request is allowed, and known to be there."""
    assert chat(messages=[{"role": "user", "content": content}]).has_media is media


def test_hidden_reasoning_is_asked_for_all_the_same():
    """vLLM leaves out the ids of reasoning that it hides, so it is asked to show it; ids are always asked for."""
    body = chat(include_reasoning=False, max_completion_tokens=9).upstream_body(5)

    assert body == {
        "model": "m", "messages": HI, "include_reasoning": True, "return_token_ids": True, "max_tokens": 5,
    }  # fmt: skip
    assert "max_tokens" not in chat().upstream_body(None)


BAD_BYTES = [
    b"", b"{", b"[]", b"7", b"null", b'{"model":NaN}', b'{"model":"\xff"}', b'{"model":"\\ud800"}', b"[" * 200_000,
    b'{"a":' * 100_000, b'{"model":1e999}', b'{"model":' + b"9" * 10_000 + b"}", b"\xef\xbb\xbf{}", b'{"a":1,}',
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD_BYTES, ids=range(len(BAD_BYTES)))
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_bytes_that_are_no_request_are_refused(raw, endpoint):
    """Broken JSON, NaN, broken UTF-8, lone surrogates and bottomless nesting are the request's fault, never a crash."""
    said = refused(Call, endpoint, raw, "r", Bounds())

    assert said.detail  # in words, and no part of what was sent is told back
    assert len(said.detail) < 200


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["text", "http://x"])
NAMES = st.sampled_from(
    ["model", "messages", "prompt", "stop", "n", "stream_options", "logit_bias", "content", "type", "uuid", "image_url",
     "vllm_xargs", "max_tokens", "holdfast"],
)  # fmt: skip
JSONISH = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(NAMES | st.text(), one, max_size=4)
)


@given(
    st.dictionaries(NAMES, JSONISH, max_size=6), st.booleans(), st.sampled_from([CHAT, COMPLETIONS]),
    st.tuples(st.integers(0, 400), st.binary(max_size=2)),
)  # fmt: skip
def test_nothing_but_a_refusal_is_ever_raised(said, whole, endpoint, edit):
    """Whatever JSON or near-JSON a client sends, it is parsed or refused."""
    raw = json.dumps({"model": "m", "messages": HI, "prompt": "Hi"} | said).encode("utf-8", "surrogatepass")
    if not whole:
        raw = raw[: edit[0]] + edit[1] + raw[edit[0] :]
    with suppress(Refused):
        assert Call(endpoint, raw, "r", Bounds()).choices >= 1
