"""The stub upstream keeps its promises: vLLM's wire, a language that continues, faults as ordered."""

import asyncio
import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from loadtests import stub_tokenizer
from loadtests.processes import StubProcess
from loadtests.stub_orders import FAULTS
from loadtests.stub_pipe import LINGER_ZERO, DripPipe
from loadtests.stub_server import PAGES
from tests.loadtests.raw_client import Client, Seen, ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAMPLES = json.loads((Path(__file__).parent / "vllm_samples.json").read_text())
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(str(stub_tokenizer.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def chat(**more: Any) -> dict[str, Any]:
    usage = {"include_usage": True}
    common = {"model": "tiny", "messages": HELLO, "stream": True, "return_token_ids": True, "stream_options": usage}
    return {**common, "max_tokens": 60, "ignore_eos": True, **more}


def prompt_ids(seen: Seen) -> list[int]:
    ids: list[int] = seen.events[0]["prompt_token_ids"]
    return ids


def shape(value: Any) -> Any:
    """Keys in their order, kinds of values; lists of numbers whatever their length."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return ["ids"] if value and all(isinstance(one, int) for one in value) else [shape(one) for one in value]
    return type(value).__name__


def events(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample["name"] for sample in SAMPLES])
async def test_answers_have_the_shape_of_real_vllm(stub, sample):
    """Status, fields, their order and their nulls equal what a real vLLM 0.32 answered."""
    request = sample["request"]
    request = (
        {**request, "ignore_eos": True} if sample["status"] == 200 and sample["path"].startswith("/v1") else request
    )

    seen = await ask(stub.port, sample["path"], request)

    body = seen.body.decode()
    assert seen.status == sample["status"]
    if sample["request"].get("stream"):
        assert [shape(event) for event in events(body)] == [shape(event) for event in events(sample["body"])]
        compact = {"separators": (",", ":"), "ensure_ascii": False}
        assert all(f"data: {json.dumps(one, **compact)}\n\n" in body for one in events(body) if one != "[DONE]")
    elif seen.status == 200:
        assert shape(json.loads(body)) == shape(json.loads(sample["body"]))
    else:
        assert body == sample["body"]


async def test_prompt_beyond_the_window_is_refused_in_vllms_words(stub):
    """A prompt of more tokens than the window is refused; one that fills it leaves no room for a token."""
    over = await ask(stub.port, TEXT, {"model": "tiny", "prompt": [300] * 4097})
    full = await ask(stub.port, TEXT, {"model": "tiny", "prompt": [300] * 4096})
    nearly = await ask(stub.port, TEXT, {"model": "tiny", "prompt": [300] * 4090, "max_tokens": 50, "ignore_eos": True})

    assert over.status == 400
    assert "contains at least 4097 input tokens" in over.json["error"]["message"]
    assert full.json["error"]["message"].startswith("max_tokens must be at least 1, got 0.")
    assert nearly.json["usage"]["completion_tokens"] == 6


async def test_malformed_requests_are_refused(stub):
    """Broken JSON, a wrong content type, unknown paths and methods get vLLM's statuses."""
    broken = await ask(stub.port, CHAT, b'{"model":')
    typed = await ask(stub.port, CHAT, chat(), headers={"content-type": "text/plain"})

    assert broken.json["error"]["param"] == "body.9"
    assert typed.json["error"]["code"] == 400
    assert (await ask(stub.port, "/nowhere")).status == 404
    assert (await ask(stub.port, CHAT)).status == 405


async def test_key_guards_the_api_only(start):
    """With a key, /v1 answers 401 without it; /health and /metrics stay open."""
    keyed = start(key="secret")

    assert (await ask(keyed.port, CHAT, chat())).json == {"error": "Unauthorized"}
    assert (await ask(keyed.port, CHAT, chat(), headers={"authorization": "Bearer secret"})).status == 200
    assert (await ask(keyed.port, "/health")).status == 200


async def test_models_health_and_metrics(stub):
    """The model card names the window, /health follows orders, /metrics has vLLM's names."""
    models = (await ask(stub.port, "/v1/models")).json
    stub.health(503)
    sick = await ask(stub.port, "/health")
    stub.health(200)

    assert (models["data"][0]["id"], models["data"][0]["max_model_len"]) == ("tiny", 4096)
    assert (sick.status, (await ask(stub.port, "/health")).status) == (503, 200)
    assert b'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in (await ask(stub.port, "/metrics")).body


async def test_tokenize_agrees_with_the_prompt_of_a_chat(stub):
    """/tokenize counts what a chat reports, and /detokenize gives the text back."""
    seen = await ask(stub.port, CHAT, chat(max_tokens=1))
    counted = (await ask(stub.port, "/tokenize", {"model": "tiny", "messages": HELLO})).json
    text = "naïve 🦀 text, bada"
    ids = (await ask(stub.port, "/tokenize", {"prompt": text})).json["tokens"]

    assert counted["tokens"] == prompt_ids(seen)
    assert (await ask(stub.port, "/detokenize", {"tokens": ids})).json == {"prompt": text}


@pytest.mark.parametrize("cut", [0, 1, 2, 17, 31, 59])
async def test_continuation_says_exactly_what_was_missing(stub, cut):
    """Prompt plus emitted ids, sent as a completion, continues the ids of the uninterrupted run."""
    whole = await ask(stub.port, CHAT, chat())

    prompt = prompt_ids(whole) + whole.ids[:cut]
    rest = await ask(stub.port, TEXT, {**chat(max_tokens=60 - cut), "prompt": prompt, "messages": None})

    assert rest.ids == whole.ids[cut:]
    assert len(whole.ids) == 60


async def test_default_length_and_its_end_survive_a_continuation(stub):
    """A chat without limits ends by itself within about 200 tokens, at the same place after a cut."""
    for word in ("one", "two", "three", "four"):
        request = chat(messages=[{"role": "user", "content": word}], max_tokens=None, ignore_eos=False)
        whole = await ask(stub.port, CHAT, request)
        prompt = prompt_ids(whole) + whole.ids[:9]
        rest = await ask(stub.port, TEXT, {**request, "prompt": prompt, "max_tokens": 1000, "messages": None})

        assert 16 <= len(whole.ids) <= 204
        assert whole.ids[-1] == stub_tokenizer.EOS
        assert rest.ids == whole.ids[9:]
        assert (whole.finish, rest.finish) == ("stop", "stop")


async def test_same_seed_same_words_other_seed_others(stub, start):
    """Two servers with one seed say the same; another seed says something else."""
    twin, other = start(seed=7), start(seed=8)

    said = [(await ask(one.port, CHAT, chat())).ids for one in (stub, twin, other)]

    assert said[0] == said[1] != said[2]


async def test_text_is_what_tokenizers_makes_of_the_ids(stub, tokenizer):
    """Chunk by chunk, the text equals DecodeStream's, incomplete characters held back."""
    held = 0
    for word in ("a", "b", "c", "d", "e"):
        seen = await ask(stub.port, CHAT, chat(messages=[{"role": "user", "content": word}], max_tokens=300))
        decoder = DecodeStream(ids=prompt_ids(seen), skip_special_tokens=True)
        for event in seen.events[1:-1]:
            choice = event["choices"][0]
            text = "".join(decoder.step(tokenizer, token) or "" for token in choice["token_ids"])
            assert choice["delta"]["content"] == text
            held += not text
    assert held > 50


async def test_continuation_inside_a_character_leaks_the_prompt_as_vllm_does(stub, tokenizer):
    """A prompt that ends inside a character makes the first text the whole decoded prompt."""
    prompt = [*stub_tokenizer.encode("badly begun "), 0xF0, 0x9F]

    seen = await ask(stub.port, TEXT, {**chat(max_tokens=20), "prompt": prompt, "messages": None})

    decoder = DecodeStream(ids=prompt, skip_special_tokens=True)
    assert seen.text == "".join(decoder.step(tokenizer, token) or "" for token in seen.ids)
    assert seen.text.startswith("badly begun ")


def test_tokenizer_file_encodes_and_decodes_alike(tokenizer):
    """The written tokenizer.json and the stub's own tables agree on text and on ids."""
    rng = random.Random(5)
    for _ in range(200):
        ids = [rng.choice([rng.randrange(256), rng.randrange(261, 8192)]) for _ in range(30)]
        text = stub_tokenizer.decode_bytes(ids).decode("utf-8", "replace")
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text, add_special_tokens=False).ids == stub_tokenizer.encode(text)


async def test_many_prompts_and_choices_are_numbered_as_vllm_does(stub):
    """Choice i of prompt p has the index p * n + i, and each its own words."""
    body = {**chat(max_tokens=5, n=2), "prompt": [[300, 301], [302]], "messages": None}

    seen = await ask(stub.port, TEXT, body)

    first = {}
    for event in seen.events[:-1]:
        choice = event["choices"][0]
        first.setdefault(choice["index"], choice)
    assert {index: choice["prompt_token_ids"] for index, choice in sorted(first.items())} == {
        0: [300, 301], 1: [300, 301], 2: [302], 3: [302],
    }  # fmt: skip
    assert first[0]["token_ids"] != first[1]["token_ids"]
    assert seen.events[-1]["usage"] == {"prompt_tokens": 3, "total_tokens": 23, "completion_tokens": 20}


async def test_stop_strings_cut_the_text_and_are_held_back(stub):
    """A stop string that spans tokens ends the answer before it; no part of it was ever sent."""
    whole = await ask(stub.port, CHAT, chat())
    stop = whole.text[18:24]
    begin = whole.text.index(stop)

    seen = await ask(stub.port, CHAT, chat(stop=["never said", stop]))
    kept = await ask(stub.port, CHAT, chat(stop=[stop], include_stop_str_in_output=True))

    assert seen.text == whole.text[:begin]
    assert kept.text == whole.text[: begin + len(stop)]
    assert (seen.finish, seen.events[-2]["choices"][0]["stop_reason"]) == ("stop", stop)
    assert seen.ids == whole.ids[: len(seen.ids)]


async def test_stop_ids_end_the_answer_with_their_token_but_without_its_text(stub):
    """A stop token id is the last id, is named as the reason, and leaves no text."""
    whole = await ask(stub.port, CHAT, chat())

    seen = await ask(stub.port, CHAT, chat(stop_token_ids=[whole.ids[8]]))

    assert seen.ids == whole.ids[:9]
    assert seen.events[-2]["choices"][0]["stop_reason"] == whole.ids[8]


async def test_plain_answers_say_what_streams_say(stub):
    """With and without stream, text, ids and usage are the same."""
    streamed = await ask(stub.port, CHAT, chat())
    plain = (await ask(stub.port, CHAT, chat(stream=False, stream_options=None))).json

    assert plain["choices"][0]["message"]["content"] == streamed.text
    assert plain["choices"][0]["token_ids"] == streamed.ids
    assert plain["usage"]["total_tokens"] == streamed.events[-1]["usage"]["total_tokens"]


async def test_order_sets_length_and_tokens_per_chunk(stub):
    """An order gives the answer's length, its end included, and puts several tokens in an event."""
    seen = await ask(stub.port, CHAT, chat(max_tokens=None, ignore_eos=False, stub={"tokens": 50, "per_chunk": 7}))

    assert len(seen.ids) == 50
    assert seen.ids[-1] == stub_tokenizer.EOS
    assert [len(event["choices"][0]["token_ids"]) for event in seen.events[1:-1]] == [7] * 7 + [1]


async def test_order_in_the_prompt_is_obeyed_again_in_its_continuation(stub):
    """An order written into the prompt sets the length, also for who continues from the ids."""
    said = 'please [[stub {"tokens": 40}]] speak'
    request = chat(messages=[{"role": "user", "content": said}], max_tokens=None, ignore_eos=False)
    whole = await ask(stub.port, CHAT, request)

    prompt = prompt_ids(whole) + whole.ids[:25]
    rest = await ask(stub.port, TEXT, {**request, "prompt": prompt, "max_tokens": 99, "messages": None})

    assert len(whole.ids) == 40
    assert rest.ids == whole.ids[25:]


async def test_pace_is_kept(stub):
    """Ordered tokens per second arrive about so fast, one event each."""
    seen = await ask(stub.port, CHAT, chat(max_tokens=20, stub={"tokens_per_s": 200}))

    assert len(seen.ids) == 20
    assert seen.reads > 10


class _Written(asyncio.Transport):
    """A transport that remembers its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False


def faulty(fault: str, at: int = 10, **more: Any) -> dict[str, Any]:
    return chat(stub={"fault": fault, "at": at, **more})


async def test_unknown_fault_is_named(stub):
    """An order that is not understood is refused, and the refusal says why."""
    seen = await ask(stub.port, CHAT, faulty("explode"))

    assert seen.status == 400
    assert seen.json["error"]["message"] == "unknown fault: explode"


@pytest.mark.parametrize(("how", "ended"), [("rst", "reset"), ("fin", "fin")])
async def test_cut_ends_the_connection_after_exactly_that_token(stub, how, ended):
    """All tokens up to `at` arrive, then a reset, or a FIN without the last chunk."""
    seen = await ask(stub.port, CHAT, faulty("cut", how=how))

    assert (seen.ended, len(seen.ids), seen.done) == (ended, 10, False)


async def test_cut_utf8_leaves_a_character_incomplete(stub, tokenizer):
    """The ids that arrived end inside a character whose text never did."""
    seen = await ask(stub.port, CHAT, {**faulty("cut_utf8"), "max_tokens": 300})

    assert seen.ended == "reset"
    assert len(seen.ids) >= 10
    assert tokenizer.decode(seen.ids).endswith("\ufffd")
    assert not seen.text.endswith("\ufffd")


async def test_cut_event_ends_inside_an_event(stub):
    """The connection closes with half an event in the client's hands."""
    seen = await ask(stub.port, CHAT, faulty("cut_event"))

    assert (seen.ended, len(seen.ids)) == ("fin", 10)
    assert not seen.body.endswith(b"\n\n")


async def test_drip_gives_the_same_bytes_one_by_one(stub):
    """Dripped bytes are those of the whole answer; only ids of the answer and clock may differ."""
    request = chat(max_tokens=3)
    whole = await ask(stub.port, CHAT, request, headers={"x-request-id": "same"})
    dripped = await ask(stub.port, CHAT, {**request, "stub": {"fault": "drip"}}, headers={"x-request-id": "same"})

    def without_clock(seen: Seen) -> list[Any]:
        return [{**event, "created": 0} for event in seen.events]

    assert without_clock(dripped) == without_clock(whole)
    assert len(dripped.body) == len(whole.body)


async def test_drip_writes_every_byte_by_itself():
    """No write of a dripping pipe has two bytes, and what follows waits for the last one."""
    transport = _Written()
    pipe = DripPipe(transport)
    drained = asyncio.Event()

    pipe.write(b"data: one\n\n")
    pipe.write(b"data: two\n\n")
    pipe.after(drained.set)
    await drained.wait()

    assert transport.writes == [bytes([byte]) for byte in b"data: one\n\ndata: two\n\n"]


@pytest.mark.parametrize(("fault", "tokens"), [("silence", 0), ("silence_after", 10)])
async def test_silence_keeps_the_socket_and_says_nothing(stub, fault, tokens):
    """After the head, or after `at` tokens, nothing comes, until the client leaves and is noticed."""
    before = len(stub.stats()["aborted"])
    seen = await ask(stub.port, CHAT, faulty(fault), until=lambda seen: bool(seen.head) and len(seen.ids) == tokens)
    async with asyncio.timeout(5):
        while len((await asyncio.to_thread(stub.stats))["aborted"]) == before:
            pass

    assert seen.ended == "left"
    assert stub.stats()["aborted"][-1]["tokens"] == tokens


async def test_reset_by_the_client_is_an_abort_but_an_ordered_cut_is_not(stub):
    """The books tell a client that left, even by a reset, from a stream that the stub itself cut."""
    handle = socket.socket()
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    headers = {"x-request-id": "mine"}

    await ask(stub.port, CHAT, faulty("cut"), headers={"x-request-id": "cut"})
    async with Client(stub.port, handle) as client:
        await client.ask(CHAT, faulty("silence_after"), headers=headers, until=lambda seen: len(seen.ids) == 10)
    async with asyncio.timeout(5):
        while not (mine := await _aborts(stub, "mine")):
            pass

    assert [abort["tokens"] for abort in mine] == [10]
    assert not await _aborts(stub, "cut")


async def _aborts(stub: StubProcess, request_id: str) -> list[dict[str, Any]]:
    stats = await asyncio.to_thread(stub.stats)
    return [abort for abort in stats["aborted"] if abort["request_id"] == request_id]


async def test_wrong_usage_lies_threefold_and_usage_missing_says_nothing(stub):
    """The two usage faults change the usage event, and nothing else."""
    true = await ask(stub.port, CHAT, chat())
    lie = await ask(stub.port, CHAT, faulty("wrong_usage"))
    none = await ask(stub.port, CHAT, faulty("usage_missing"))

    assert lie.events[-1]["usage"]["total_tokens"] == 3 * true.events[-1]["usage"]["total_tokens"]
    assert "usage" not in none.events[-1]
    assert true.ids == lie.ids == none.ids
    assert none.done


async def test_error_then_done_ends_cleanly_after_an_error_event(stub):
    """vLLM's way to die: an error event, [DONE], and a clean end."""
    seen = await ask(stub.port, CHAT, faulty("error_then_done"))

    assert (seen.ended, seen.done, len(seen.ids), seen.finish) == ("clean", True, 10, None)
    assert seen.events[-1]["error"]["code"] == 500


async def test_abort_finish_says_so(stub):
    """The answer finishes with reason abort, usage and [DONE]."""
    seen = await ask(stub.port, CHAT, faulty("abort_finish"))

    assert (seen.ended, seen.done, len(seen.ids), seen.finish) == ("clean", True, 10, "abort")


async def test_eof_no_done_ends_cleanly_without_a_finish(stub):
    """The chunked body ends as it should, the stream does not."""
    seen = await ask(stub.port, CHAT, faulty("eof_no_done"))

    assert (seen.ended, seen.done, len(seen.ids), seen.finish) == ("clean", False, 10, None)


async def test_status_is_answered_with_vllms_error_body(stub):
    """An ordered status comes instead of an answer, and the connection stays usable."""
    async with Client(stub.port) as client:
        refused = await client.ask(CHAT, faulty("status", status=429))
        served = await client.ask(CHAT, chat())

    assert (refused.status, refused.json["error"]["code"]) == (429, 429)
    assert served.done


async def test_no_ids_leaves_the_fields_out(stub):
    """Ids are missing altogether although they were asked for; the text comes."""
    seen = await ask(stub.port, CHAT, faulty("no_ids"))

    assert b'"token_ids"' not in seen.body
    assert len(seen.text) > 20


async def test_comments_only_is_no_progress(stub):
    """Only comment lines come, without an end."""
    seen = await ask(stub.port, CHAT, faulty("comments_only"), until=lambda seen: seen.body.count(b": keep") == 3)

    assert seen.ended == "left"
    assert len(seen.ids) == 10


@pytest.mark.parametrize("fault", ["big_event", "garbage", "bad_ids"])
async def test_one_bad_event_and_then_the_rest(stub, fault):
    """The bad event comes after `at`, once; all that follows is as it would have been."""
    whole = await ask(stub.port, CHAT, chat())
    seen = await ask(stub.port, CHAT, faulty(fault, bytes=300_000))

    good = [event for event in seen.events if event not in _bad(seen)]
    assert [token for event in good for token in _tokens(event)] == whole.ids
    assert seen.done
    assert {"big_event": len(seen.body) > 300_000, "garbage": b"\xff\xfe" in seen.body, "bad_ids": bool(_bad(seen))}[
        fault
    ]


def _tokens(event: dict[str, Any]) -> list[int]:
    return [token for choice in event["choices"] for token in choice.get("token_ids") or []]


def _bad(seen: Seen) -> list[dict[str, Any]]:
    return [event for event in seen.events if any(not 0 <= token < 8192 for token in _tokens(event))]


async def test_continuation_beyond_a_fault_is_not_hit_again(stub):
    """An order that travels with the continuation strikes once per place, not once per server."""
    cut = await ask(stub.port, CHAT, faulty("cut"))
    prompt = prompt_ids(cut) + cut.ids

    rest = await ask(stub.port, TEXT, {**faulty("cut"), "prompt": prompt, "max_tokens": 50, "messages": None})

    assert (rest.ended, len(rest.ids)) == ("clean", 50)


async def test_once_is_obeyed_once(stub):
    """The same order with `once` hits the first request only."""
    request = faulty("status", status=500, once=True)

    assert [(await ask(stub.port, CHAT, request)).status for _ in range(3)] == [500, 200, 200]


async def test_armed_faults_hit_the_next_requests_and_count_their_own_tokens(stub):
    """POST /stub/fault hits as many requests as it says; `at` counts what this server says."""
    whole = await ask(stub.port, CHAT, chat())
    prompt = prompt_ids(whole) + whole.ids[:20]
    stub.arm("cut", at=5, times=2)

    rests = [await ask(stub.port, TEXT, {**chat(), "prompt": prompt, "messages": None}) for _ in range(3)]

    assert [len(rest.ids) for rest in rests] == [5, 5, 60]
    assert [rest.ended for rest in rests] == ["reset", "reset", "clean"]


async def test_command_line_fault_hits_each_kth_request(start):
    """`--fault --at --every` hits every K-th request of that server."""
    sick = start(fault="cut", at=4, every=3)

    seen = [await ask(sick.port, CHAT, chat()) for _ in range(6)]

    assert [one.ended for one in seen] == ["clean", "clean", "reset"] * 2


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"silence", "silence_after", "comments_only"}))
async def test_every_fault_of_a_plain_answer_ends(stub, fault):
    """Plain answers know every fault too: none of those that end leaves the client waiting."""
    seen = await ask(stub.port, CHAT, {**faulty(fault), "stream": False, "stream_options": None})

    assert seen.ended in ("clean", "fin", "reset")
    assert (seen.ended != "clean") == (fault in ("cut", "cut_utf8", "cut_event", "eof_no_done"))


async def test_stats_tell_what_was_asked_and_sent(stub):
    """The books hold the requests with headers, and the tokens sent for each request id."""
    await ask(stub.port, CHAT, chat(max_tokens=9), headers={"x-request-id": "r-9"})

    stats = stub.stats()

    assert stats["tokens_sent"]["r-9"] == 9
    assert stats["recorded"][-1]["headers"]["x-request-id"] == "r-9"
    assert stats["recorded"][-1]["body"]["max_tokens"] == 9
    assert stats["open_streams"] == 0


async def test_slow_reader_stalls_the_stub_and_still_gets_everything(stub):
    """The stub stops saying tokens that nobody reads, and says the rest when somebody does."""
    tokens, choices = 4000, 12  # more than the system keeps of what nobody reads
    request = {**chat(max_tokens=tokens), "prompt": [300], "messages": None, "n": choices, "temperature": 1}
    reading = asyncio.Event()
    handle = socket.socket()
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)

    async with Client(stub.port, handle, reading) as client:
        asking = asyncio.create_task(client.ask(TEXT, request, headers={"x-request-id": "slow"}))
        said = [0, -1]
        async with asyncio.timeout(30):
            while said[-1] < 1 or said[-1] != said[-2]:
                said.append((await asyncio.to_thread(stub.stats))["tokens_sent"].get("slow", 0))
        reading.set()
        seen = await asking

    assert said[-1] < choices * tokens
    assert seen.events[-1]["usage"]["completion_tokens"] == choices * tokens
    assert seen.done


@pytest.mark.slow
async def test_frozen_engine_leaves_the_server_alive_and_goes_on_where_it_was(start):
    """Frozen, it answers /health and /metrics, whose counters stand still, and computes nothing; then it goes on."""
    sick = start(tokens_per_s=100)
    begun = asyncio.Event()

    def reading(seen: Seen) -> bool:
        if len(seen.ids) >= 5:
            begun.set()
        return False

    stream = asyncio.create_task(ask(sick.port, CHAT, chat(max_tokens=200), until=reading))
    await begun.wait()
    await asyncio.to_thread(sick.freeze_engine)
    before = await _counters(sick)
    canary = asyncio.create_task(ask(sick.port, TEXT, {"model": "tiny", "prompt": [1], "max_tokens": 1}))
    await asyncio.sleep(0.3)
    idle = (stream.done(), canary.done(), await _counters(sick), (await ask(sick.port, "/health")).status)
    await asyncio.to_thread(sick.thaw_engine)

    assert idle == (False, False, before, 200)
    assert (await canary).status == 200
    assert (await stream).ids == (await ask(sick.port, CHAT, chat(max_tokens=200, stub={"tokens_per_s": 0}))).ids
    assert await _counters(sick) != before


@pytest.mark.slow
async def test_a_slow_engine_takes_its_time_from_now_on(start):
    """Six times slower in mid-stream, the rest takes six times as long, in the same words; 1 makes it fast again."""
    sick = start(tokens_per_s=100)
    begun = asyncio.Event()

    def reading(seen: Seen) -> bool:
        if len(seen.ids) >= 5:
            begun.set()
        return False

    stream = asyncio.create_task(ask(sick.port, CHAT, chat(max_tokens=60), until=reading))
    await begun.wait()
    begun_s = time.monotonic()
    await asyncio.to_thread(sick.slow, 6)
    slow = await stream
    slow_s = time.monotonic() - begun_s
    await asyncio.to_thread(sick.slow, 1)
    begun_s = time.monotonic()
    fast = await ask(sick.port, CHAT, chat(max_tokens=60))

    assert slow.ids == fast.ids
    assert slow_s > 3 * (time.monotonic() - begun_s)


async def test_metrics_say_what_they_are_told_to(start):
    """Until they are told to say the truth again; of unknown names the stub knows nothing."""
    stub = start()

    async def said() -> list[str]:
        lines = bytes((await ask(stub.port, "/metrics")).body).decode().splitlines()
        return [line.split()[-1] for line in lines if line.startswith("vllm:num_requests_waiting{")]

    await asyncio.to_thread(stub.gauges, num_requests_waiting=7)
    lied = await said()
    await asyncio.to_thread(stub.gauges)

    assert (lied, await said()) == (["7.0"], ["0.0"])
    assert (await ask(stub.port, "/stub/fault", {"gauges": {"nonsense": 1}})).status == 400
    assert (await ask(stub.port, "/stub/fault", {"slowness": 0})).status == 400


async def test_the_plugin_is_there_when_it_is_told_to(start):
    """With what it is told to have found; behind the key, as all of the API is, and not at all otherwise."""
    stub, keyed = start(), start(key="secret")

    async def asked(one: StubProcess, **headers: str) -> Seen:
        return await ask(one.port, "/holdfast/status", headers=headers)

    without = await asked(stub)
    await asyncio.to_thread(stub.pages, ("changed", "gate", 3), fingerprint="ab")
    told = (await asked(stub)).json
    await asyncio.to_thread(stub.no_pages)
    await asyncio.to_thread(keyed.pages)

    assert (without.status, (await asked(stub)).status) == (404, 404)
    assert told == PAGES | {"corrupt": [{"kind": "changed", "where": "gate", "pages": 3}], "fingerprint": "ab"}
    assert ((await asked(keyed)).status, (await asked(keyed, authorization="Bearer secret")).status) == (401, 200)


async def _counters(stub: StubProcess) -> list[bytes]:
    lines = bytes((await ask(stub.port, "/metrics")).body).split(b"\n")
    return [line for line in lines if line.startswith((b"vllm:prompt_tokens_total{", b"vllm:generation_tokens_total{"))]


@pytest.mark.slow
async def test_terminated_server_ends_its_answers_with_an_error(start):
    """On SIGTERM a stream ends by error event, [DONE] and a clean end, a plain answer by 500; then nobody listens."""
    leaving = start(tokens_per_s=20)
    open_ones = [
        asyncio.create_task(ask(leaving.port, CHAT, chat(max_tokens=4000))),
        asyncio.create_task(ask(leaving.port, CHAT, chat(max_tokens=4000, stream=False, stream_options=None))),
    ]
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(leaving.stats))["tokens_sent_total"] < 4003:
            pass

    leaving.terminate()
    stream, plain = await asyncio.gather(*open_ones)

    assert (stream.ended, stream.done, stream.finish) == ("clean", True, None)
    assert stream.events[-1]["error"]["code"] == 500
    assert plain.status == 500
    assert await asyncio.to_thread(leaving.process.wait, 10) == 0
    with pytest.raises(ConnectionRefusedError):
        await ask(leaving.port, "/health")
