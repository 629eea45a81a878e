"""Taking the ids out of vLLM's chunks leaves the bytes that vLLM would have sent without them."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.wire import UpstreamError, decode_chunk, rewritten, without_ids
from loadtests.stub_wire import Wire

# As recorded from vLLM 0.32; `?` stands where ids were asked for.
ROLE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,'
    b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":?,'
    b'"prompt_text":null}'
)
CONTENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,'
    b'"delta":{"content":" a"},"logprobs":null,"finish_reason":null,"token_ids":?}]}'
)
FIRST = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"tiny","choices":[{"index":0,"text":" a",'
    b'"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":?,"token_ids":?}]}'
)
CLIENT_TEXTS = [',"token_ids":[1]', '","token_ids":[1]', '\\","prompt_token_ids":[1],"', "}]}\n\ndata: [DONE]"]


@pytest.mark.parametrize("sample", [ROLE, CONTENT, FIRST])
@pytest.mark.parametrize("ids", [b"[]", b"[7]", b"[1,2,300]"])
def test_a_chunk_without_its_ids_is_vllms_own(sample, ids):
    """Every id that the gateway asked for becomes the null of a server that was not asked, and nothing else changes."""
    assert without_ids(sample.replace(b"?", ids), has_ids=True) == sample.replace(b"?", b"null")


@given(st.text() | st.sampled_from(CLIENT_TEXTS), st.lists(st.integers(0, 1 << 20), max_size=5), st.booleans())
def test_text_is_never_taken_for_ids(text, ids, chat):
    """Whatever the text, also one that looks like the field itself, only the ids are taken out."""
    wire = Wire(chat, "id", 1, "tiny", "print")
    raw = wire.content(0, text, ids, prompt_ids=ids).removesuffix(b"\n\n")

    bare = without_ids(raw, has_ids=True)

    assert bare == wire.content(0, text, None).removesuffix(b"\n\n")
    assert decode_chunk(bare[6:]).choices[0].content == text


def test_rewriting_changes_only_what_it_is_told():
    """A chunk that is encoded again keeps every field, and its ids unless they are to go."""
    raw = b'data: {"id": "x", "choices": [{"index": 0, "text": "a", "token_ids": [1], "new_field": 2.5}]}'

    kept = json.loads(rewritten(raw, drop_ids=False, stop_reason="why")[6:])
    bare = json.loads(rewritten(raw, drop_ids=True)[6:])

    said = {"index": 0, "text": "a", "token_ids": [1], "new_field": 2.5}
    assert kept == {"id": "x", "choices": [said | {"stop_reason": "why"}]}
    assert bare == {"id": "x", "choices": [said | {"token_ids": None}]}


def test_reasoning_is_taken_out_when_told():
    """A client that wants no reasoning gets the rest of its chunk."""
    raw = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","reasoning":"hm","reasoning_content":"hm"}}]}'

    assert json.loads(rewritten(raw, drop_ids=True, drop_reasoning=True)[6:]) == {
        "choices": [{"index": 0, "delta": {"role": "assistant"}}]
    }


@pytest.mark.parametrize(
    ("code", "status"), [(404, 404), (500, 500), (None, 500), ("invalid_api_key", 500), (200, 500), (600, 500)]
)
def test_an_error_without_a_usable_code_is_the_servers(code, status):
    """vLLM's code is an HTTP status; whatever else stands there counts as 500."""
    assert UpstreamError(code=code).status == status


@pytest.mark.parametrize("ids", [b"[-1]", b"[2147483648]", b'["1"]', b"[1.5]"])
def test_ids_that_cannot_be_are_not_decoded(ids):
    """An id beyond 31 bits, or that is no number, is no event of vLLM's."""
    with pytest.raises(msgspec.ValidationError):
        decode_chunk(CONTENT.replace(b"?", ids)[6:])
