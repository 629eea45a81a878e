"""Text from ids: the gateway's own is vLLM's, whoever decodes and however the ids arrive."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream

from gateway.stream import text as text_module
from gateway.stream.text import (
    IDS_WAITING_MAX,
    LocalDecoder,
    Piece,
    RemoteDecoder,
    TextLost,
    TokenizerInvalid,
    Transcript,
    load_tokenizer,
)
from loadtests.stub_tokenizer import SPECIALS
from tests.gateway.stream.vllm_text import VOCAB, VllmText, tokenizer

# Token texts over a small alphabet, so that stop strings are met, and begin, often.
TOKENS = st.lists(st.text("ab", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
# Bytes of characters, parts of emoji, whole pieces, special tokens, in any order.
IDS = st.lists(
    st.integers(0, VOCAB - 1) | st.sampled_from([*"é中🦀".encode(), 0xF0, 0x9F, 0xFF, *SPECIALS.values()]), max_size=24
)
EMOJI = [*"a🦀é🦀".encode()]


@given(TOKENS, STOPS, st.booleans(), st.integers(0, 6), st.lists(st.integers(1, 3), min_size=12, max_size=12))
def test_a_transcript_stops_and_holds_back_as_vllm_does(tokens, stops, include, min_tokens, chunks):
    """For any texts of tokens, stop strings and chunks: the same text at each step, the same stop, the same tokens."""
    ours = Transcript(stops, include, min_tokens)
    theirs = VllmText(lambda one: tokens[one], stops, include, min_tokens)
    at = 0
    for chunk in chunks:
        ids = list(range(len(tokens)))[at : at + chunk]
        at += chunk
        found = theirs.update(ids, False)
        kept = ours.add([Piece((one,), tokens[one]) for one in ids])
        assert (ours.stopped, kept) == (found or (None, len(ids)))
        assert ours.take(False) == theirs.give(found is not None)
        if found:
            return
    assert ours.take(True) == theirs.give(True)


@pytest.mark.parametrize(
    ("stops", "stopped"), [(["bcd", "bc"], "bc"), (["abc", "bc"], "abc"), (["bc", "abc"], "bc"), (["x", "c"], "c")]
)
def test_the_stop_string_that_completes_first_wins_then_the_first_named(stops, stopped):
    """Of several stop strings in one token the earliest to complete ends the answer; of two, the first in the list."""
    transcript = Transcript(stops, False, 0)

    kept = transcript.add([Piece((1,), "abcd"), Piece((2,), "more")])

    assert (transcript.stopped, kept) == (stopped, 1)


@pytest.mark.parametrize("include", [False, True])
def test_a_long_transcript_keeps_only_its_tail(include):
    """A stream of any length holds a bounded text, and still finds a stop string across what it dropped."""
    transcript = Transcript(["END!"], include, 0)
    sent = ""
    for _ in range(3000):
        transcript.add([Piece((1,), "words ")])
        sent += transcript.take(False)
    transcript.add([Piece((1,), "words " * 1000 + "EN")])
    sent += transcript.take(False)
    transcript.add([Piece((1,), "D!")])

    assert len(transcript._text) < 10_000
    assert sent + transcript.take(True) == "words " * 4000 + ("END!" if include else "")
    assert transcript.stopped == "END!"


def never(lost):
    """Text that must not be lost."""
    raise AssertionError(lost)


def decode_all(prompt, ids, skip):
    """One pass of the library's own DecodeStream, whose text after each id is what vLLM streams."""
    stream = DecodeStream(ids=list(prompt), skip_special_tokens=skip)
    return [stream.step(tokenizer(), one) or "" for one in ids]


@given(IDS, IDS, st.booleans())
def test_the_local_decoder_is_the_librarys_stream(prompt, ids, skip):
    """Whatever the ids, also broken characters, each gives the text that vLLM's own decoding gives."""
    decoder, pieces = LocalDecoder(tokenizer(), skip), []
    decoder.prime(prompt)

    decoder.push(ids, pieces.extend, never)

    assert pieces == [Piece((one,), text) for one, text in zip(ids, decode_all(prompt, ids, skip), strict=True)]


@given(IDS, IDS | st.just(EMOJI), st.booleans())
async def test_a_local_decoder_takes_over_at_any_point(prompt, ids, skip):
    """Adopting any first part of an answer and then being pushed the rest equals one pass."""
    whole = decode_all(prompt, ids, skip)
    for split in range(len(ids) + 1):
        decoder, pieces = LocalDecoder(tokenizer(), skip), []
        pieces += await decoder.adopt(prompt, ids[:split])
        decoder.push(ids[split:], pieces.extend, never)
        await decoder.drained()
        assert [piece.text for piece in pieces] == whole


async def decode(ids):
    """A replica's /detokenize."""
    await asyncio.sleep(0)
    return tokenizer().decode(list(ids), skip_special_tokens=False)


PLAIN = IDS.map(lambda ids: [*ids, 0x41])  # a prompt that ends with a whole character


@given(PLAIN, IDS, st.lists(st.integers(1, 5), max_size=24), st.integers(0, 12))
async def test_a_remote_decoder_makes_the_same_text_as_a_local_one(prompt, ids, batches, adopted):
    """However the ids arrive, a replica's /detokenize gives the text that a tokenizer here would give."""
    local = "".join(decode_all(prompt, ids, False))
    decoder, pieces = RemoteDecoder(decode), []
    pieces += await decoder.adopt(prompt, ids[:adopted])
    at = adopted
    for size in [*batches, *[1] * len(ids)]:
        if ids[at : at + size]:
            decoder.push(ids[at : at + size], pieces.extend, never)
        at += size
    await decoder.drained()

    assert [one for piece in pieces for one in piece.ids] == ids
    assert "".join(piece.text for piece in pieces) == local


@given(PLAIN, IDS, st.integers(1, 5))
async def test_a_remote_decoder_can_tell_the_text_of_each_id(prompt, ids, size):
    """Where stop strings are looked for, each id has its own piece, however many come at once."""
    decoder, pieces = RemoteDecoder(decode, singly=True), []
    decoder.prime(prompt)
    for at in range(0, len(ids), size):
        decoder.push(ids[at : at + size], pieces.extend, never)
    await decoder.drained()

    assert [piece.ids for piece in pieces] == [(one,) for one in ids]
    assert [piece.text for piece in pieces] == list(decode_all(prompt, ids, False))


async def test_a_remote_decoder_asks_for_a_short_window():
    """However long the answer, what is sent to be decoded stays short: some context and what is new."""
    asked = []

    async def note(ids):
        asked.append(len(ids))
        return await decode(ids)

    decoder, pieces = RemoteDecoder(note), []
    decoder.prime([65] * 5000)
    for _ in range(200):
        decoder.push([66], pieces.extend, never)
    await decoder.drained()

    assert max(asked) <= text_module.PROMPT_TAIL + 2
    assert len(pieces) == 200


async def test_a_remote_decoder_that_falls_behind_says_so():
    """Ids that wait for their text are bounded: at the bound, whoever pushes is told to wait, and later that it may."""
    decoder, pieces = RemoteDecoder(decode), []

    kept_up = [decoder.push([65], pieces.extend, never) for _ in range(IDS_WAITING_MAX)]
    await decoder.drained()

    assert kept_up == [True] * (IDS_WAITING_MAX - 1) + [False]
    assert len(pieces) == IDS_WAITING_MAX
    assert decoder.room


async def test_a_remote_decoder_passes_on_that_no_replica_answers():
    """A failed /detokenize is told at once, and only once; what comes later is not decoded, and adopting fails."""

    async def fail(ids):
        raise TextLost("nobody answers")

    decoder, lost, pieces = RemoteDecoder(fail), [], []
    for _ in range(3):
        decoder.push([65], pieces.extend, lost.append)
    await decoder.drained()
    decoder.push([65], pieces.extend, lost.append)
    await decoder.drained()

    assert [str(one) for one in lost] == ["nobody answers"]
    assert pieces == []
    with pytest.raises(TextLost, match="nobody"):
        await RemoteDecoder(fail).adopt([1], [65])


async def test_a_closed_remote_decoder_is_still():
    """Once closed, no piece is answered any more, also none whose decoding was under way."""
    decoder, pieces = RemoteDecoder(decode), []
    decoder.push([65], pieces.extend, never)

    decoder.close()
    await asyncio.sleep(0.01)

    assert pieces == []


@pytest.mark.parametrize("content", [None, "{}", "\x00"])
def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path, content):
    """A missing or broken tokenizer.json is refused by its path."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(TokenizerInvalid, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


class Jumpy:
    """A decode stream that breaks once, as the library's does on non-monotonic output (vLLM issue 17448)."""

    def __init__(self, error):
        self.error = error

    def step(self, given, one):
        raise self.error


@pytest.mark.parametrize(
    ("error", "text"), [(Exception("Invalid prefix encountered"), "A"), (OverflowError(), ""), (TypeError(), "")]
)
async def test_a_stream_that_breaks_is_begun_afresh(error, text):
    """An id that the library cannot take has no text, a broken state is begun anew, as in vLLM."""
    decoder, pieces = LocalDecoder(tokenizer(), True), []
    decoder._stream = Jumpy(error)

    decoder.push([65], pieces.extend, never)

    assert pieces == [Piece((65,), text)]


async def test_another_error_of_the_library_is_not_hidden():
    """A bug in decoding surfaces."""
    decoder = LocalDecoder(tokenizer(), True)
    decoder._stream = Jumpy(ValueError("a bug"))

    with pytest.raises(ValueError, match="a bug"):
        decoder.push([65], print, never)
