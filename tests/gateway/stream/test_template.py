"""Chunks read by what they have in common: never anything else than what decoding them whole would tell."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.sse import DATA
from gateway.stream.template import learnt
from gateway.stream.wire import read, without_ids

IDS = st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=5)


def chunk(text="so", ids=(5,), *, chat=True, ascii_only=False, head=(), choice=(), delta=()):
    """One of vLLM's events."""
    said = {"delta": {"content": text, **dict(delta)}} if chat else {"text": text}
    one = {"index": 0, **said, "logprobs": None, "finish_reason": None, **dict(choice)}
    one |= {"token_ids": list(ids)} if ids is not None else {}
    body = {"id": "x", "created": 1, "model": "tiny", "choices": [one], **dict(head)}
    return DATA + json.dumps(body, separators=(",", ":"), ensure_ascii=ascii_only).encode()


def template(raw):
    return learnt(raw, read(raw))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("ascii_only", [True, False])
@given(first=st.text(), second=st.text(), ids=IDS, more=IDS)
def test_it_reads_what_decoding_would(chat, ascii_only, first, second, ids, more):
    """Any text, also one that quotes what surrounds it; any ids; and the bytes that cutting the ids out leaves."""
    known = template(chunk(first, ids, chat=chat, ascii_only=ascii_only))
    for text in (second, f'"{second}', f'\\{second}"}},"logprobs":null,"finish_reason":null,"token_ids":[1]}}]}}'):
        raw = chunk(text, more, chat=chat, ascii_only=ascii_only)

        assert known.read(raw) == (text, more, without_ids(raw, has_ids=True))


MORE = {
    "a role": {"delta": {"role": "assistant"}},
    "reasoning": {"delta": {"reasoning": "hm"}},
    "tools": {"delta": {"tool_calls": [{}]}},
    "an end": {"choice": {"finish_reason": "stop"}},
    "a stop reason": {"choice": {"stop_reason": 3}},
    "prompt ids": {"choice": {"prompt_token_ids": [1]}},
    "a chat's prompt ids": {"head": {"prompt_token_ids": [1]}},
    "usage": {"head": {"usage": {"prompt_tokens": 1}}},
    "an error": {"head": {"error": {"message": "no"}}},
    "no ids": {"ids": None},
    "an empty list of ids": {"ids": []},
    "no text": {"text": None},
}


@pytest.mark.parametrize("more", MORE.values(), ids=MORE.keys())
def test_nothing_is_learnt_from_a_chunk_that_brings_more_and_none_is_read_by_another_s(more):
    """What is not text and ids alone is decoded, each time."""
    known = template(chunk())

    assert template(chunk(**more)) is None
    assert known.read(chunk(**more)) is None


WRONG = {
    "another index": chunk(choice={"index": 1}),
    "another choice beside it": chunk().replace(b'"choices":[', b'"choices":[{"index":1},'),
    "an id below zero": chunk(ids=(-1,)),
    "an id beyond all": chunk(ids=(1 << 31,)),
    "an id that is none": chunk(ids=("5",)),
    "ids within ids": chunk(ids=([5],)),
    "ids twice": chunk().replace(b"[5]", b'[5],"token_ids":[6]'),
    "a text that ends early": chunk().replace(b'"so"', b'"so","reasoning":"x"'),
    "a text that does not end": chunk().replace(b'"so"', b'"so\\"'),
    "bytes that are no UTF-8": chunk().replace(b"so", b"\xff"),
    "a control character": chunk().replace(b"so", b"s\x01o"),
    "another end": chunk()[:-1] + b"]",
    "more after it": chunk() + b"x",
    "less": chunk()[:-1],
    "a line break before the text": chunk().replace(b'"so"', b'\n"so"'),
    "a line break within the ids": chunk(ids=(5, 6)).replace(b"5,6", b"5,\r6"),
    "nothing": b"",
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG.keys())
def test_what_is_not_of_its_shape_is_left_to_the_decoder(raw):
    """A byte that differs outside of text and ids, or a text or ids that are none."""
    assert template(chunk()).read(raw) is None


DECOYS = {
    "ids elsewhere": {"choice": {"x": {"y": 1, "token_ids": [5]}}},
    "text elsewhere": {"head": {"x": {"content": "so"}}},
    "a name that holds either": {"head": {"model": 'a "content":"b" ,"token_ids":[7]'}},
}


@pytest.mark.parametrize("decoy", DECOYS.values(), ids=DECOYS.keys())
def test_nothing_is_learnt_where_it_is_not_certain_what_was_read(decoy):
    """The same ids in two places: the next chunk may differ in one of them only."""
    assert template(chunk(**decoy)) is None


def test_nothing_is_learnt_where_ids_are_not_written_as_vllm_does():
    """With spaces the places are not found; then every chunk is decoded."""
    spaced = DATA + json.dumps(json.loads(chunk()[len(DATA) :])).encode()

    assert template(spaced) is None
