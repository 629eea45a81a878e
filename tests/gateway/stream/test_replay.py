"""Streams that go on by replay: the standby says again what the client has, and then goes on in its own words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.call import Endpoint
from gateway.stream.leg_end import Cause, LegEnd
from guards.continuing import Continues
from guards.refusal import Ending
from tests.gateway.stream.fakes import BROKEN, PROMPT, Engine, FakeLease, Play, call_for, ids_of, terms_for, text_of

SAID = ids_of("Größe 🦀🦀 naïve, and so on ok")
N = len(SAID)
ALL = Continues(seeds=True)
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
USAGE = {"include_usage": True}
THOUGHTS, WORDS = 6, 14  # tokens of an answer's reasoning, and where its tool call begins


def parsed(play: "Parsed", leg: int, raws: list[bytes]) -> list[bytes]:
    """What a server with parsers makes of an answer: reasoning, content, then a tool call with an id of its own.

    What it replays has logprobs that mean nothing.
    """
    body, positions, found = play.engine.asked[-1], dict[int, int](), []
    again = json.loads(body.get("vllm_xargs", {}).get("holdfast_resume", "[]"))
    for raw in raws:
        event = json.loads(raw[6:]) if b"[DONE]" not in raw else {}
        said = event.get("choices") or [{}]
        if not said[0].get("token_ids"):
            found.append(raw)
            continue
        choice = said[0]
        at, ids, text = positions.get(choice["index"], 0), choice["token_ids"], choice["delta"]["content"]
        positions[choice["index"]] = at + len(ids)
        if at < THOUGHTS:
            choice["delta"] = {"reasoning": text} if text else {}
        elif at >= WORDS:
            function = {"arguments": text} | ({"name": "weather"} if at < WORDS + len(ids) else {})
            call = {"index": 0, "function": function}
            choice["delta"] = {"tool_calls": [call | ({"id": f"call-{leg}"} if "name" in function else {})]}
        replayed = bool(again) and at < sum(map(len, again[choice["index"]]))
        choice["logprobs"] = {"content": [{"token": one, "logprob": 0.0 if replayed else -one / 7} for one in ids]}
        found.append(b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode())
    return found


class Parsed(Play):
    """Servers with parsers, that continue by replay."""

    def __init__(self, call: Any, engine: Engine, **options: Any) -> None:
        super().__init__(
            call, engine, **{"continues": ALL} | options, edit=lambda leg, raws: parsed(self, leg, raws)
        )

    @property
    def answer(self) -> dict[str, Any]:
        """What a client's own parser makes of it: of each choice what was said, and where it ended."""
        found: dict[str, Any] = {"ids": self.seen.ids, "finish": self.seen.finish, "usage": self.seen.usage}
        said: dict[tuple[int, str], Any] = {}
        for event in events_of(self.sink.data):
            for choice in event["choices"]:
                delta, at = choice["delta"], choice["index"]
                for call in delta.get("tool_calls", ()):
                    for name, text in call["function"].items():
                        said[at, name] = said.get((at, name), "") + text
                    said[at, "calls"] = said.get((at, "calls"), 0) + ("id" in call)
                for name in ("reasoning", "content"):
                    said[at, name] = said.get((at, name), "") + (delta.get(name) or "")
                logprobs = (choice.get("logprobs") or {}).get("content", [])
                said[at, "logprobs"] = said.get((at, "logprobs"), []) + logprobs
        return found | {"said": said}


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The chunks that a client got."""
    return [json.loads(raw[6:]) for raw in data.split(b"\n\n") if raw and b"[DONE]" not in raw]


def resume(asked: dict[str, Any]) -> Any:
    return json.loads(asked["vllm_xargs"]["holdfast_resume"])


def chunks(ids: list[int], size: int) -> list[list[int]]:
    return [ids[at : at + size] for at in range(0, len(ids), size)]


# -------------------------------------------------------------------- what is asked, and what is passed on


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("per_chunk", [1, 3])
async def test_a_stream_goes_on_by_replay_from_every_cut(endpoint, per_chunk):
    """The whole request is asked again with the ids in the chunks they came in; nothing shows but a pause."""
    call = call_for(endpoint, return_token_ids=True, seed=7, temperature=0.8, stream_options=USAGE)
    whole = (await Play(call, Engine([SAID]), per_chunk=per_chunk).run()).seen
    roles = 1 if endpoint is Endpoint.CHAT else 0
    for cut in range(1 + roles, roles + len(chunks(SAID, per_chunk))):
        play = await Play(call, Engine([SAID]), cuts=[cut], per_chunk=per_chunk, continues=ALL).run()

        first, second = play.engine.asked
        assert resume(second) == [chunks(SAID, per_chunk)[: cut - roles]]
        assert {name: value for name, value in second.items() if name != "vllm_xargs"} == first
        seen = play.seen
        assert (seen.text, seen.ids, seen.finish) == (whole.text, whole.ids, whole.finish)
        assert (seen.stop_reason, seen.usage, seen.roles) == (whole.stop_reason, whole.usage, whole.roles)
        assert seen.answer_ids == {"cmpl-1"}
        assert seen.done
        assert seen.told["failovers"] == 1
        assert play.relay.house.recomputed == len(PROMPT) + (cut - roles) * per_chunk


async def test_the_rest_is_the_servers_own_bytes_but_for_whose_they_are():
    """Each further event is the standby's, byte by byte, with the id, time and model of the first server."""
    call = call_for(return_token_ids=True)

    play = await Play(call, Engine([SAID]), cuts=[9], continues=ALL).run()

    rest = play.sent[1][9:-3]  # without the last, which tells of the failover, the usage, and [DONE]
    ours = b"".join(raw.replace(b'"cmpl-2"', b'"cmpl-1"') + b"\n\n" for raw in rest)
    assert ours in play.sink.data
    assert play.sink.data.startswith(b"".join(raw + b"\n\n" for raw in play.sent[0][:9]) + ours)


async def test_what_was_said_of_the_server_follows_the_first_one():
    """Also where its events are not written as vLLM writes them, and where each of them is stamped."""

    def stamped(leg: int, raws: list[bytes]) -> list[bytes]:
        found = []
        for raw in raws:
            if b"[DONE]" not in raw:
                event = json.loads(raw[6:])
                event |= {"system_fingerprint": f"vllm-{leg}", "created": 1000 + leg, "model": f"tiny-{leg}"}
                raw = b"data: " + json.dumps(event, separators=(", ", ": ") if leg else (",", ":")).encode()
            found.append(raw)
        return found

    play = await Play(
        call_for(stream_options=USAGE), Engine([SAID]), cuts=[5], edit=stamped, continues=ALL
    ).run()

    heads = {(one["id"], one["created"], one["model"], one["system_fingerprint"]) for one in events_of(play.sink.data)}
    assert heads == {("cmpl-1", 1000, "tiny-0", "vllm-0")}
    assert play.seen.text[0] == text_of(SAID)


@pytest.mark.parametrize("per_chunk", [1, 2])
async def test_parsers_and_logprobs_go_on_from_every_cut(per_chunk):
    """Reasoning, content, a tool call with one id, and logprobs of no replayed token: as a client's parser has them."""
    call = call_for(tools=TOOLS, logprobs=True, return_token_ids=True, stream_options=USAGE)
    whole = (await Parsed(call, Engine([SAID]), per_chunk=per_chunk).run()).answer
    assert whole["said"][0, "calls"] == 1
    assert whole["said"][0, "reasoning"] + whole["said"][0, "content"] + whole["said"][0, "arguments"] == text_of(SAID)

    for cut in range(2, 1 + len(chunks(SAID, per_chunk))):
        play = await Parsed(call, Engine([SAID]), cuts=[cut], per_chunk=per_chunk).run()
        assert play.relay.ending is Ending.FINISHED
        assert play.relay.failovers == 1
        assert play.answer == whole


async def test_hidden_reasoning_stays_hidden():
    """include_reasoning false: its text is left out before the cut and after it, and still compared."""
    play = await Parsed(call_for(include_reasoning=False), Engine([SAID]), cuts=[4]).run()

    assert b"reasoning" not in play.sink.data
    assert play.relay.completion_tokens == N


@given(st.lists(st.integers(min_value=2, max_value=N), min_size=2, max_size=3), st.integers(min_value=1, max_value=4))
async def test_a_stream_is_replayed_again_and_again(cuts, per_chunk):
    """Also a server is lost before it has replayed all; each time the next one gets all that the client has."""
    call = call_for(tools=TOOLS, return_token_ids=True)
    terms = terms_for(call, legs_max=5)

    play = await Parsed(call, Engine([SAID]), cuts=cuts, per_chunk=per_chunk, terms=terms, batch=per_chunk).run()

    assert play.seen.ids[0] == SAID
    assert play.answer["said"][0, "calls"] == 1
    assert play.relay.ending is Ending.FINISHED


@given(st.integers(min_value=4, max_value=60), st.integers(min_value=1, max_value=4))
async def test_all_choices_are_replayed_at_once(cut, batch):
    """With n=2 one leg brings both again; one that was finished is left alone, whatever is said of it."""
    engine = Engine([ids_of("first ü 🦀"), ids_of("second, somewhat longer ö")])
    call = call_for(n=2, tools=TOOLS, return_token_ids=True, stream_options=USAGE)
    whole = (await Parsed(call, Engine(engine.answers)).run()).answer

    play = await Parsed(call, engine, cuts=[cut], batch=batch).run()

    assert [len(leg) for leg in play.sent] == [len(play.sent[0])] * len(play.sent)
    assert play.answer == whole


@given(st.integers(min_value=1, max_value=120))
async def test_each_prompt_is_replayed_by_a_leg_of_its_own(cut):
    """Several prompts with n=2: a replay is of one, and its choices are the client's."""
    answers = [ids_of(text) for text in ("one ü", "two", "three 🦀🦀", "four and more", "five", "six")]
    prompts = [[*PROMPT, 300 + at] for at in range(3)]
    call = call_for(
        Endpoint.COMPLETIONS, prompt=["0", "1", "2"], n=2, seed=3, return_token_ids=True, stream_options=USAGE
    )
    whole = (await Play(call, Engine(answers, prompts)).run()).seen

    play = await Play(call, Engine(answers, prompts), cuts=[cut], continues=ALL).run()

    again = [asked for asked in play.engine.asked[1:] if "vllm_xargs" in asked]
    assert [asked["prompt"] for asked in again] == sorted({asked["prompt"] for asked in again})
    assert all(len(resume(asked)) == 2 and asked["seed"] == 3 for asked in again)
    assert (play.seen.text, play.seen.ids, play.seen.finish) == (whole.text, whole.ids, whole.finish)
    assert play.seen.usage == whole.usage


# -------------------------------------------------------------------- where it is not trusted


def other_ids(raws: list[bytes]) -> list[bytes]:
    return [raw.replace(b'"token_ids":[%d]' % SAID[2], b'"token_ids":[%d]' % (SAID[2] + 1)) for raw in raws]


def other_text(raws: list[bytes]) -> list[bytes]:
    return [raws[0], raws[1].replace(b'"content":"', b'"content":"!'), *raws[2:]]


def other_prompt(raws: list[bytes]) -> list[bytes]:
    return [raws[0].replace(b'"prompt_token_ids":[', b'"prompt_token_ids":[9,'), *raws[1:]]


def sooner(raws: list[bytes]) -> list[bytes]:
    return [*raws[:3], raws[3].replace(b'"finish_reason":null', b'"finish_reason":"stop"'), *raws[4:]]


def shorter(raws: list[bytes]) -> list[bytes]:
    return [*raws[:3], raws[-1]]


def unreadable(raws: list[bytes]) -> list[bytes]:
    """Tokens that the client has and others in one event, with a number beside them that nobody can read."""
    return [raw.replace(b"{", b'{"odd":1e999,', 1) for raw in merged(raws, 4, 6)]


@pytest.mark.parametrize("wrong", [other_ids, other_text, other_prompt, sooner, shorter, unreadable])
async def test_a_replay_of_something_else_is_not_trusted(wrong):
    """Nothing of it reaches the client: the stream goes on from its ids, where that is exact."""
    call = call_for(return_token_ids=True)

    play = await Play(
        call, Engine([SAID]), cuts=[8], edit=lambda leg, raws: wrong(raws) if leg == 1 else raws, continues=ALL
    ).run()

    assert play.legs[1].closed or wrong is shorter
    assert [("vllm_xargs" in asked, "messages" in asked) for asked in play.engine.asked] == [
        (False, True), (True, True), (False, False)
    ]  # fmt: skip
    assert (play.seen.text[0], play.seen.ids[0]) == (text_of(SAID), SAID)


@pytest.mark.parametrize("wrong", [other_ids, other_prompt, sooner])
async def test_where_only_a_replay_would_be_exact_another_server_is_tried_and_then_none(wrong):
    """It ends with an error, after what was delivered."""
    call = call_for(tools=TOOLS)

    play = await Play(
        call, Engine([SAID]), cuts=[8], edit=lambda leg, raws: wrong(raws) if leg else raws, continues=ALL
    ).run()

    assert [resume(asked) for asked in play.engine.asked[1:]] == [[chunks(SAID[:7], 1)]] * 2
    assert play.relay.ending is Ending.UPSTREAM_LOST
    assert play.relay.completion_tokens == 7
    assert "other" in play.seen.error["message"]


async def test_a_server_that_refuses_the_replay_is_left_for_one_that_goes_on_from_the_ids():
    """Its 400 is no fault of the request, which was answered before."""
    call = call_for(return_token_ids=True)
    play = Play(call, Engine([SAID]), continues=ALL)
    (ask,) = await play.relay.asks(ALL)
    part, leg, raws, _ = play._leg(ask)
    await play._feed(part, leg, raws[:6], BROKEN)
    await play.relay.ended(part, BROKEN)
    (ask,) = await play.relay.asks(ALL)
    part, *_ = play._leg(ask)
    lost = await play.relay.ended(part, LegEnd(Cause.REFUSED, "the server answered status 400", 400, b"{}"))

    assert lost
    assert ask.replay
    await play.run()
    assert "vllm_xargs" not in play.engine.asked[-1]
    assert play.seen.ids[0] == SAID


async def test_a_stream_that_is_worded_here_is_not_replayed():
    """After it went on by its ids once, it goes on so: no server's words follow ours."""
    call = call_for(return_token_ids=True)
    play = Play(call, Engine([SAID]), cuts=[6, 3])
    for _ in range(2):
        (ask,) = await play.relay.asks(None)
        part, leg, raws, _ = play._leg(ask)
        await play._feed(part, leg, raws, BROKEN)
        await play.relay.ended(part, BROKEN)
    play.continues = ALL
    await play.run()

    assert not any("vllm_xargs" in asked for asked in play.engine.asked)
    assert (play.seen.text[0], play.seen.ids[0]) == (text_of(SAID), SAID)


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("continues", [None, ALL])
async def test_all_chunks_are_of_one_answer_the_usage_too(endpoint, continues):
    """Whichever way it goes on: the next server's own id, and what it says of its own request, are nobody's."""

    def detailed(leg: int, raws: list[bytes]) -> list[bytes]:
        return [raw.replace(b'"usage":{', b'"usage":{"prompt_tokens_details":{"cached_tokens":5},') for raw in raws]

    play = await Play(
        call_for(endpoint, stream_options=USAGE), Engine([SAID]), cuts=[8], edit=detailed, continues=continues
    ).run()

    kind = "chat.completion.chunk" if endpoint is Endpoint.CHAT else "text_completion"
    assert {(one["id"], one["object"]) for one in events_of(play.sink.data)} == {("cmpl-1", kind)}
    assert play.seen.usage == {"prompt_tokens": len(PROMPT), "completion_tokens": N, "total_tokens": len(PROMPT) + N}
    assert play.relay.house.restored == 5


# -------------------------------------------------------------------- ends and merged events


def merged(raws: list[bytes], at: int, count: int) -> list[bytes]:
    """Put so many events from there on into one, as a server that is overtaken by its engine does."""
    events = [json.loads(raw[6:]) for raw in raws[at : at + count]]
    one, choice = events[-1], events[-1]["choices"][0]
    parts = [event["choices"][0] for event in events]
    choice["token_ids"] = [one for part in parts for one in part["token_ids"]]
    if "delta" in choice:
        choice["delta"]["content"] = "".join(part["delta"]["content"] for part in parts)
    else:
        choice["text"] = "".join(part["text"] for part in parts)
    told = [f"t{one}" for one in choice["token_ids"]]
    choice["logprobs"] = {"content": told} if "delta" in choice else {"tokens": told, "text_offset": [0] * len(told)}
    return [*raws[:at], b"data: " + json.dumps(one).encode(), *raws[at + count :]]


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("count", [2, 4, N - 7])
async def test_what_came_with_the_last_replayed_token_is_passed_on_alone(endpoint, count):
    """The server's last replayed event and the first new ones are one: the client gets its part of it."""
    roles = 1 if endpoint is Endpoint.CHAT else 0
    call = call_for(endpoint, return_token_ids=True, stream_options=USAGE)

    play = await Play(
        call,
        Engine([SAID]),
        cuts=[8 + roles],
        edit=lambda leg, raws: merged(raws, 7 + roles, count) if leg else raws,
        continues=ALL,
    ).run()

    assert play.relay.failovers == 1
    assert (play.seen.text[0], play.seen.ids[0], play.seen.usage) == (text_of(SAID), SAID, play.seen.usage)
    (odd,) = [event for event in events_of(play.sink.data) if event["choices"] and event["choices"][0]["logprobs"]]
    told = [f"t{one}" for one in SAID[8 : 7 + count]]
    logprobs = odd["choices"][0]["logprobs"]
    assert logprobs == ({"content": told} if roles else {"tokens": told, "text_offset": [0] * (count - 1)})
    assert odd["id"] == "cmpl-1"


def endless(raws: list[bytes]) -> list[bytes]:
    """The same stream, whose end comes in an event of its own."""
    last = next(at for at, raw in enumerate(raws) if b'"finish_reason":"' in raw)
    event = json.loads(raws[last][6:])
    event["choices"][0] |= {"finish_reason": None, "stop_reason": None}
    return [*raws[:last], b"data: " + json.dumps(event, separators=(",", ":")).encode()]


@pytest.mark.parametrize("held", ["", "!"])
async def test_an_end_that_was_lost_is_replayed(held):
    """All tokens are there and only the finish is missing: it comes from the standby, with text that was held back."""

    def edit(leg: int, raws: list[bytes]) -> list[bytes]:
        if leg == 0:
            return endless(raws)
        return [raw.replace(b'"content":""', b'"content":"%b"' % held.encode()) if b'"finish_reason":"' in raw else raw
                for raw in raws]  # fmt: skip

    call = call_for(tools=TOOLS, return_token_ids=True, stream_options=USAGE)
    play = await Play(call, Engine([SAID]), cuts=[N + 1], edit=edit, continues=ALL).run()

    assert play.relay.ending is Ending.FINISHED
    assert (play.seen.ids[0], play.seen.finish) == (SAID, {0: "stop"})
    assert play.seen.text[0] == text_of(SAID) + held
    assert play.seen.usage["completion_tokens"] == N
    assert play.lease.counted == len(PROMPT) + N


async def test_the_last_chunk_tells_of_the_failover_where_no_usage_follows():
    """As it does where the gateway words the rest; and it is a chunk of the server's otherwise."""
    play = await Play(call_for(), Engine([SAID]), cuts=[5], continues=ALL).run()

    *_, last = events_of(play.sink.data)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["holdfast"]["failovers"] == 1
    assert last["holdfast"]["gap_ms"] > 0


async def test_usage_is_the_standbys_but_for_what_it_had_cached():
    """How much was reasoning is told; what was cached there is what it was sent again."""

    def detailed(leg: int, raws: list[bytes]) -> list[bytes]:
        cached, reasoning = b'"prompt_tokens_details":{"cached_tokens":5}', b'{"reasoning_tokens":4}'
        details = b'"usage":{%b,"completion_tokens_details":%b,' % (cached, reasoning)
        return [raw.replace(b'"usage":{', details) for raw in raws]

    play = await Play(
        call_for(stream_options=USAGE), Engine([SAID]), cuts=[5], edit=detailed, continues=ALL
    ).run()

    assert play.seen.usage == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": N,
        "total_tokens": len(PROMPT) + N,
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    assert play.lease.cached == 0


async def test_usage_that_cannot_be_read_whole_is_told_in_our_words():
    """Its stream is whole; it does not break for a number that nobody asked for."""
    play = await Play(
        call_for(stream_options=USAGE), Engine([SAID]), cuts=[5], continues=ALL,
        edit=lambda leg, raws: [raw.replace(b'"usage":{', b'"usage":{"odd":1e999,') for raw in raws],
    ).run()

    assert play.seen.usage == {"prompt_tokens": len(PROMPT), "completion_tokens": N, "total_tokens": len(PROMPT) + N}


@pytest.mark.parametrize("cut", range(2, N))
async def test_replayed_tokens_cost_nothing_and_a_lease_that_runs_dry_ends_it_where_it_would(cut):
    """With a budget of 20 tokens, topped up 8 at a time, the answer ends after 20, whatever was replayed."""
    lease = FakeLease(leased=len(PROMPT) + 8, left=12, step=6)
    call = call_for(return_token_ids=True)

    play = await Play(call, Engine([SAID]), cuts=[cut], lease=lease, continues=ALL).run()

    assert play.relay.completion_tokens == min(20, N)
    assert play.seen.ids[0] == SAID[:20]


# -------------------------------------------------------------------- seeds and refusals


@pytest.mark.parametrize(
    ("said", "continues", "seeded"),
    [
        ({"temperature": 0.8}, ALL, True),
        ({}, ALL, True),
        ({"temperature": 0}, ALL, False),
        ({"temperature": 0.8}, Continues(seeds=False), False),
        ({"temperature": 0.8}, None, False),
    ],
)
async def test_a_seed_is_given_where_the_replica_can_use_it(said, continues, seeded):
    """And the same one goes with the replay; where the client gave one it is the client's."""
    call = call_for(**said)
    terms = terms_for(call, draw=lambda: 4711)

    play = await Play(call, Engine([SAID]), cuts=[5], terms=terms, continues=continues).run()

    first, second = play.engine.asked
    assert first.get("seed") == (4711 if seeded else None)
    assert second.get("seed") == (4711 if seeded and "vllm_xargs" in second else None)
    assert play.seen.text[0] == text_of(SAID)


async def test_several_prompts_are_given_no_seed():
    """The same prompt twice, as who wants two samples asks, would have the same answer twice."""
    call = call_for(Endpoint.COMPLETIONS, prompt=["0", "0"], temperature=1)

    play = await Play(call, Engine([SAID, SAID], [PROMPT, PROMPT]), cuts=[9], continues=ALL).run()

    assert [asked.get("seed") for asked in play.engine.asked] == [None] * 3


async def test_a_clients_own_seed_is_left_alone():
    play = await Play(call_for(seed=5, temperature=1), Engine([SAID]), cuts=[5], continues=ALL).run()

    assert [asked["seed"] for asked in play.engine.asked] == [5, 5]


@pytest.mark.parametrize(
    ("said", "continues", "feature"),
    [
        ({"tools": TOOLS, "thinking_token_budget": 0}, Continues(True, frozenset(["thinking_token_budget"])),
         "thinking_token_budget"),
        ({"seed": 5, "temperature": 1}, Continues(seeds=False), "seed"),
        ({"use_beam_search": True}, ALL, "use_beam_search"),
        ({"tools": TOOLS}, None, "tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}, ALL,
         "media in messages"),
    ],
)  # fmt: skip
async def test_what_cannot_be_continued_is_refused_by_name(said, continues, feature):
    """By the name of the field that stands against it."""
    play = await Play(call_for(**said), Engine([SAID]), cuts=[5], continues=continues).run()

    assert play.relay.ending is Ending.UNCONTINUABLE
    assert play.seen.error["message"] == (
        f"The server that generated this answer was lost, and {feature} cannot be continued exactly on another."
    )


async def test_a_clients_own_arguments_stay_beside_ours():
    """vllm_xargs of the client are sent along."""
    call = call_for(vllm_xargs={"mine": 1})

    play = await Play(call, Engine([SAID]), cuts=[5], continues=ALL).run()

    assert play.engine.asked[0]["vllm_xargs"] == {"mine": 1}
    assert play.engine.asked[1]["vllm_xargs"].keys() == {"mine", "holdfast_resume"}


async def test_a_replay_whose_text_differs_in_its_last_event_is_not_trusted():
    """Also where that event brings new tokens, too."""
    wrong = b'"content":"\\u2603'

    def edit(leg: int, raws: list[bytes]) -> list[bytes]:
        if leg != 1:
            return raws
        odd = merged(raws, 8, 3)
        return [raw.replace(b'"content": "', wrong) for raw in odd]  # as `merged` writes it, and the others do not

    play = await Play(call_for(return_token_ids=True), Engine([SAID]), cuts=[9], edit=edit, continues=ALL).run()

    assert play.legs[1].closed
    assert "\u2603" not in play.seen.text[0]
    assert (play.seen.text[0], play.seen.ids[0]) == (text_of(SAID), SAID)


async def test_a_replay_that_ends_inside_a_character_is_not_trusted():
    """Its text is what the client has, but it lacks tokens that the client has."""
    at = next(number for number, one in enumerate(SAID) if one == "🦀".encode()[0])

    def edit(leg: int, raws: list[bytes]) -> list[bytes]:
        if leg != 1:
            return raws
        ended = raws[at + 1].replace(b'"finish_reason":null', b'"finish_reason":"stop"')  # behind the role
        return [*raws[: at + 1], ended, *raws[at + 2 :]]

    play = await Play(call_for(return_token_ids=True), Engine([SAID]), cuts=[at + 3], edit=edit, continues=ALL).run()

    assert play.legs[1].closed
    assert (play.seen.text[0], play.seen.ids[0]) == (text_of(SAID), SAID)
