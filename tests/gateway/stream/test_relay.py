"""One client stream across legs: events in, client bytes out. Every scenario ends with `Play.check`."""

import asyncio
import json
import re
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream import asks
from gateway.stream.call import Endpoint
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.relay import Relay
from gateway.stream.text import IDS_WAITING_MAX, LocalDecoder, RemoteDecoder, TextLost
from guards.refusal import Ending, Reason
from tests.gateway.stream.fakes import (
    BROKEN,
    PLENTY,
    PROMPT,
    Engine,
    FakeLease,
    FakeLeg,
    FakeSink,
    Play,
    call_for,
    ids_of,
    terms_for,
    text_of,
)  # fmt: skip
from tests.gateway.stream.vllm_text import tokenizer

COMPLETIONS = Endpoint.COMPLETIONS
SAID = ids_of('Größe 🦀🦀 naïve ,"token_ids":[7,8] data: [DONE]\n\nok')
N = len(SAID)


async def uncut(call, engine, **options):
    """The same scenario without a loss."""
    return (await Play(call, Engine(engine.answers, engine.prompts), **options).run()).seen


# -------------------------------------------------------------------- a leg that lives


@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_a_whole_stream_is_passed_on_byte_by_byte_less_the_ids(endpoint):
    """A stream that nothing happens to is the server's, with null where the ids were, and without its usage."""
    play = await Play(call_for(endpoint), Engine([SAID])).run()

    sent = b"".join(raw + b"\n\n" for raw in play.sent[0] if b'"choices":[]' not in raw)
    ids = [json.dumps(one, separators=(",", ":")).encode() for one in ([token] for token in SAID)]
    for one in ids:
        sent = sent.replace(b'"token_ids":%b}]' % one, b'"token_ids":null}]')
    sent = sent.replace(json.dumps(PROMPT, separators=(",", ":")).encode(), b"null")
    assert play.sink.data == sent
    assert play.relay.ending is Ending.FINISHED
    assert play.seen.text[0] == text_of(SAID)


async def test_a_client_that_asks_for_ids_gets_the_servers_bytes_whole():
    """With return_token_ids and usage asked for, not a byte is changed."""
    call = call_for(return_token_ids=True, stream_options={"include_usage": True})

    play = await Play(call, Engine([SAID])).run()

    assert play.sink.data == b"".join(raw + b"\n\n" for raw in play.sent[0])


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"continuous_usage_stats": True}])
async def test_the_usage_chunk_comes_only_when_asked_for(options):
    """Usage is asked of the server, always, and given to the client only if it asked; nor in each chunk then."""
    play = await Play(call_for(stream_options=options), Engine([SAID])).run()

    assert play.engine.asked[0]["stream_options"] == {"include_usage": True}
    assert play.seen.usage is None


async def test_an_event_that_tells_no_usage_is_not_taken_for_it():
    """An empty chunk after the usage does not replace it."""
    call = call_for(stream_options={"include_usage": True})

    play = await Play(call, Engine([SAID]), edit=lambda leg, raws: [*raws[:-1], b'data: {"id":"x"}', raws[-1]]).run()

    assert play.seen.usage["completion_tokens"] == N


async def test_reasoning_is_hidden_from_a_client_that_wants_none():
    """include_reasoning false: the server is asked for it, so that its tokens are counted, and it is left out here."""

    def reasons(leg, raws):
        return [re.sub(rb'"delta":{"content":"(?!")', b'"delta":{"reasoning":"', raw) for raw in raws]

    play = await Play(call_for(include_reasoning=False), Engine([SAID]), edit=reasons).run()

    assert play.engine.asked[0]["include_reasoning"] is True
    assert b"reasoning" not in play.sink.data
    assert play.relay.completion_tokens == N


async def test_an_echo_of_the_last_message_needs_no_ids():
    """A chat's echo is the client's own text: it comes without ids and is passed on."""
    echo = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}'

    play = await Play(call_for(echo=True), Engine([SAID]), edit=lambda leg, raws: [raws[0], echo, *raws[1:]]).run()

    assert play.seen.text[0] == "Hi" + text_of(SAID)


def unnumbered(said: str) -> bytes:
    """An event with text and no ids."""
    return b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}' % said.encode()


async def test_an_echo_is_given_once():
    """Text without ids that follows an echo is no echo: its server is left, and none of that text is given."""

    def more(leg, raws):
        return [raws[0], unnumbered("Hi"), *([unnumbered("free")] if leg == 0 else []), *raws[1:]]

    play = await Play(call_for(echo=True), Engine([SAID]), edit=more).run()

    assert play.legs[0].closed
    assert play.seen.text[0] == "Hi" + text_of(SAID)


async def test_an_echo_is_given_again_by_a_server_that_begins_anew():
    """A server lost between its echo and its first token costs nothing: the next one may echo too."""
    play = await Play(
        call_for(echo=True), Engine([SAID]), cuts=[2], edit=lambda leg, raws: [raws[0], unnumbered("Hi"), *raws[1:]]
    ).run()

    assert play.seen.text[0] == "Hi" + text_of(SAID)


async def test_a_parsers_text_must_follow_a_token():
    """With tools a parser may send text apart from its ids, but not before any token: that would be free."""

    def early(leg, raws):
        return [raws[0], *([unnumbered("free")] if leg == 0 else []), raws[1], unnumbered(" late "), *raws[2:]]

    play = await Play(call_for(tools=[{"type": "function"}]), Engine([SAID]), edit=early).run()

    assert play.legs[0].closed
    assert b"free" not in play.sink.data
    assert b" late " in play.sink.data
    assert play.relay.completion_tokens == N


# -------------------------------------------------------------------- a leg that is lost


@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_a_loss_before_the_first_token_is_not_seen_by_the_client(endpoint):
    """A server lost before a token was delivered is replaced: the request starts anew, and the prompt is paid once."""
    cut = 1 if endpoint is Endpoint.CHAT else 0

    play = await Play(call_for(endpoint), Engine([SAID]), cuts=[cut, 0]).run()

    assert [asked.get("prompt", "Hi") for asked in play.engine.asked] == ["Hi"] * 3
    assert play.seen.text[0] == text_of(SAID)
    assert play.seen.told is None
    assert play.relay.failovers == 0
    assert play.lease.counted == len(PROMPT) + N


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("per_chunk", [1, 3])
async def test_the_text_is_the_same_for_every_cut(endpoint, per_chunk):
    """Wherever a stream is cut, another server is asked to go on after exactly prompt and ids, and nothing shows."""
    call = call_for(endpoint, return_token_ids=True, stream_options={"include_usage": True})
    engine = Engine([SAID])
    whole = await uncut(call, engine, per_chunk=per_chunk)
    roles = 1 if endpoint is Endpoint.CHAT else 0
    for cut in range(1 + roles, len(engine.events(asks.whole(call, terms_for(call))))):
        play = await Play(call, Engine([SAID]), cuts=[cut], per_chunk=per_chunk).run()
        seen, told = play.seen, min((cut - roles) * per_chunk, N)
        if len(play.engine.asked) > 1:
            assert play.engine.asked[1]["prompt"] == PROMPT + SAID[:told]
            assert play.engine.asked[1]["max_tokens"] == 500 - told
        assert (seen.text, seen.ids, seen.finish) == (whole.text, whole.ids, whole.finish)
        assert (seen.stop_reason, seen.usage, seen.roles) == (whole.stop_reason, whole.usage, whole.roles)
        assert seen.answer_ids == {"cmpl-1"}
        assert seen.done


@given(st.lists(st.integers(min_value=2, max_value=N), min_size=2, max_size=2))
async def test_two_losses_in_one_stream_do_not_show(cuts):
    """A stream that loses two servers has the same text and counts each token once."""
    play = await Play(call_for(return_token_ids=True), Engine([SAID]), cuts=cuts).run()

    assert (play.seen.text[0], play.seen.ids[0]) == (text_of(SAID), SAID)


@given(st.integers(min_value=4, max_value=60), st.integers(min_value=1, max_value=4))
async def test_each_of_several_choices_goes_on_from_its_own_cut(cut, batch):
    """With n=2 each choice goes on from where it was, and a choice that was finished is left alone."""
    engine = Engine([ids_of("first ü 🦀"), ids_of("second, somewhat longer ö")])
    call = call_for(n=2, return_token_ids=True)
    whole = await uncut(call, engine)

    seen = (await Play(call, engine, cuts=[cut], batch=batch).run()).seen

    assert (seen.text, seen.ids, seen.finish, seen.roles) == (whole.text, whole.ids, whole.finish, whole.roles)


@pytest.mark.parametrize("cut", range(1, 30))
async def test_each_of_several_prompts_goes_on_from_its_own_cut(cut):
    """With an array of prompts, those of which nothing came are asked anew, the others go on; each is paid once."""
    engine = Engine([ids_of("one ü"), ids_of("two, longer ö")], [PROMPT, [*PROMPT, 65]])
    call = call_for(COMPLETIONS, prompt=["0", "1"], return_token_ids=True)
    engine_whole = Engine(engine.answers, engine.prompts)
    whole = (await Play(call, engine_whole).run()).seen

    play = await Play(call, engine, cuts=[cut]).run()

    assert (play.seen.text, play.seen.ids, play.seen.finish) == (whole.text, whole.ids, whole.finish)
    assert play.lease.counted == 2 * len(PROMPT) + 1 + sum(map(len, engine.answers))


async def test_prompts_are_known_when_all_of_them_are():
    """Of two, one alone says nothing of what they come to."""
    engine = Engine([ids_of("one"), ids_of("two")], [PROMPT, [*PROMPT, 65]])
    known = []

    def note(leg, raws):
        known.append((play.relay.prompt_known, play.relay.prompt_tokens))
        return raws

    play = Play(call_for(COMPLETIONS, prompt=["0", "1"], return_token_ids=True), engine, cuts=[1], edit=note)
    await play.run()

    assert {tokens for told, tokens in known if not told} == {0, len(PROMPT)}
    assert (play.relay.prompt_known, play.relay.prompt_tokens) == (True, 2 * len(PROMPT) + 1)


async def test_a_stop_string_of_a_choice_that_is_asked_anew_is_found_here():
    """A prompt that had no token yet goes on under the same rules: no part of its stop string is sent."""
    engine = Engine([ids_of("one"), ids_of("two xEND three")], [PROMPT, [*PROMPT, 65]])
    call = call_for(COMPLETIONS, prompt=["0", "1"], stop=["xEND"], return_token_ids=True)

    play = await Play(call, engine, cuts=[1]).run()

    assert play.seen.text == {0: "one", 1: "two "}
    assert play.seen.stop_reason[1] == "xEND"
    assert "stop" not in play.engine.asked[2]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("per_chunk", [1, 4])
async def test_a_stop_string_across_the_cut_ends_the_answer_as_it_would_have(include, batch, per_chunk):
    """Wherever the cut falls, also inside the stop string, text, tokens and stop_reason are the uninterrupted ones."""
    ids = ids_of("some words, then xENDx and more")
    call = call_for(stop=["nope", "END"], include_stop_str_in_output=include, return_token_ids=True)
    whole = await uncut(call, Engine([ids]), per_chunk=per_chunk)
    for cut in range(2, len(whole.ids[0]) // per_chunk + 1):
        play = await Play(call, Engine([ids]), cuts=[cut], batch=batch, per_chunk=per_chunk).run()
        seen = play.seen
        assert (seen.text, seen.ids, seen.stop_reason) == (whole.text, whole.ids, whole.stop_reason)
        assert play.legs[1].closed


async def test_a_lost_finish_is_written_here_when_all_tokens_were_delivered():
    """A server lost between the last token of max_tokens and its finish is not replaced."""

    def hide_finish(leg, raws):
        return [raw.replace(b'"finish_reason":"length"', b'"finish_reason":null') for raw in raws]

    call = call_for(max_tokens=5, return_token_ids=True, stream_options={"include_usage": True})
    play = await Play(call, Engine([SAID]), cuts=[6], edit=hide_finish).run()

    assert len(play.engine.asked) == 1
    assert (play.seen.ids[0], play.seen.finish[0], play.seen.done) == (SAID[:5], "length", True)
    assert play.seen.usage["completion_tokens"] == 5


@pytest.mark.parametrize("missing", [1, 2])
async def test_a_lost_end_after_every_finish_is_no_loss(missing):
    """Once every choice is finished, a lost usage or [DONE] is written here."""
    call = call_for(stream_options={"include_usage": True})

    play = await Play(call, Engine([SAID]), cuts=[N + 3 - missing]).run()

    assert len(play.engine.asked) == 1
    assert (play.seen.done, play.seen.usage["completion_tokens"]) == (True, N)


LINE_BREAK = b'"id":"x",%b"choices":[{"index":0,"delta":{"content":"?"},"token_ids":[65]}]}'
GARBAGE = {
    "a line break": b"data: {" + LINE_BREAK % b"\n",
    "a carriage return": b"data: {" + LINE_BREAK % b"\r",
    "a second data line": b'data: {"id":"x"}\ndata: {' + LINE_BREAK % b"",
    "a key that is refused": b'data: {"error": {"message": "no", "type": "Unauthorized", "code": 401}}',
    "a model that is gone": b'data: {"error": {"message": "no", "type": "NotFoundError", "code": 404}}',
    "error": b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}',
    "not json": b"data: {oops",
    "not an object": b"data: [1]",
    "not utf-8": b'data: {"id":"\xff","choices":[]}',
    "unknown index": b'data: {"id":"x","choices":[{"index":7,"delta":{"content":"?"},"token_ids":[65]}]}',
    "negative index": b'data: {"id":"x","choices":[{"index":-1,"delta":{"content":"?"},"token_ids":[65]}]}',
    "two choices": b'data: {"id":"x","choices":[{"index":0,"token_ids":[65]},{"index":0,"token_ids":[65]}]}',
    "text without ids": b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"?"}}]}',
    "negative id": b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"?"},"token_ids":[-1]}]}',
    "abort": b'data: {"id":"x","choices":[{"index":0,"delta":{"content":""},"finish_reason":"abort","token_ids":[]}]}',
}  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("after", [1, 7])
async def test_a_server_that_talks_nonsense_is_left(garbage, after):
    """An error event, an abort or anything that is not vLLM's costs the server its stream, and the client nothing."""

    def spoil(leg, raws):
        return [*raws[:after], garbage, *raws[after:]] if leg == 0 else raws

    play = await Play(call_for(return_token_ids=True), Engine([SAID]), batch=3, edit=spoil).run()

    assert play.legs[0].closed
    assert (play.seen.text[0], play.seen.ids[0], play.seen.done) == (text_of(SAID), SAID, True)


async def test_tokens_whose_prompt_was_not_told_are_not_delivered():
    """A server that does not tell the prompt's ids cannot be charged for: it is left, and at last refused."""

    def hide(leg, raws):
        return [b'data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant"}}]}', *raws[1:]]

    play = await Play(call_for(), Engine([SAID]), edit=hide).run()

    assert play.relay.refusal.reason is Reason.UPSTREAM
    assert "prompt's ids" in play.relay.detail


async def test_an_error_of_the_requests_own_fault_keeps_its_words_and_status():
    """A 4xx in the stream before any token refuses the request, and no other server is asked."""
    error = b'data: {"error": {"message": "too long", "type": "BadRequestError", "param": "input", "code": 400}}'

    play = await Play(call_for(), Engine([SAID]), edit=lambda leg, raws: [error, b"data: [DONE]"]).run()

    refusal = play.relay.refusal
    assert (refusal.reason, refusal.detail, refusal.param, refusal.status) == (
        Reason.UPSTREAM,
        "too long",
        "input",
        400,
    )
    assert len(play.engine.asked) == 1


async def test_a_status_of_the_requests_own_fault_refuses_it():
    """A 400 instead of a stream is the client's to see, with vLLM's message."""
    call, lease = call_for(), FakeLease()
    relay = Relay(call, FakeSink(), lease, terms_for(call), lambda: 0.0)
    (ask,) = await relay.asks()
    part = relay.part(ask)

    lost = await relay.ended(part, LegEnd(Cause.REFUSED, "", 400, b'{"error":{"message":"no","code":400}}'))

    assert (lost, relay.refusal.detail, relay.refusal.status) == (False, "no", 400)


async def test_every_server_lost_before_a_token_is_a_refusal_that_costs_nothing():
    """When no server delivers anything, the client gets a status, and the prompt that was counted is given back."""
    play = await Play(call_for(), Engine([SAID]), cuts=[1, 1, 1]).run()

    assert play.relay.refusal.reason is Reason.UPSTREAM
    assert (play.relay.ending, play.lease.counted) == (Ending.REFUSED, 0)


async def test_every_server_lost_after_tokens_is_an_error_in_the_stream():
    """When the last server allowed is lost in mid-answer, the stream ends with an error and never with [DONE]."""
    play = await Play(call_for(), Engine([SAID]), cuts=[5, 5, 5]).run()

    assert play.relay.ending is Ending.UPSTREAM_LOST
    assert play.seen.error["code"] == "upstream_lost"
    assert not play.seen.done


@pytest.mark.parametrize(
    ("events", "says"), [(1, Reason.FIRST_TOKEN), (5, Ending.SILENT)], ids=["first token", "between tokens"]
)
async def test_a_last_server_that_is_silent_for_too_long_says_which_limit_that_was(events, says):
    """The first token's is a status, the one between tokens an error event; what was delivered is paid for."""
    play = Play(call_for(), Engine([SAID]), terms=terms_for(call_for(), legs_max=1))
    (ask,) = await play.relay.asks()
    part, _, raws, _ = play._leg(ask)
    part.events(raws[:events])

    await play.relay.ended(part, LegEnd(Cause.SILENT, "no token arrived within 1 s", late=True))
    await play.relay.finish()

    play.check()
    assert (play.relay.refusal.reason if play.relay.refusal else play.relay.ending) is says
    assert "within 1 s" in play.relay.detail


@pytest.mark.parametrize("cut", [0, 1])
async def test_a_client_that_was_only_kept_waiting_has_nothing_yet(cut):
    """After a comment a lost leg is still asked for all of it anew, whatever the request uses; the role comes once."""
    call = call_for(logprobs=True, return_token_ids=True)
    sink = FakeSink()
    sink.started = True  # as by a comment
    play = Play(call, Engine([SAID]), cuts=[cut], sink=sink)

    await play.run()

    assert ["messages" in one for one in play.engine.asked] == [True, True]
    assert (play.relay.failovers, play.seen.ids[0], play.seen.roles) == (0, SAID, {0: 1})


async def test_a_refusal_stays_one_although_a_comment_was_sent():
    """It is told to the edge, which has the words for it; nothing is charged."""
    sink = FakeSink()
    sink.started = True  # as by a comment
    play = Play(call_for(), Engine([SAID]), sink=sink)
    (ask,) = await play.relay.asks()
    part, _, raws, _ = play._leg(ask)
    part.events(raws[:1])

    play.relay.fail(Ending.TIMEOUT, "too long")

    assert (play.relay.refusal.reason, play.lease.counted, sink.writes) == (Reason.TIMEOUT, 0, 0)


@pytest.mark.parametrize("delivered", [0, 5])
async def test_giving_up_is_a_status_before_the_first_byte_and_an_error_after_it(delivered):
    """A time limit ends a stream visibly, whether anything was delivered or not."""
    play = Play(call_for(), Engine([SAID]))
    (ask,) = await play.relay.asks()
    part, leg, raws, _ = play._leg(ask)
    part.events(raws[:delivered])

    play.relay.fail(Ending.TIMEOUT, "too long")
    await play.relay.finish()

    play.check()
    assert leg.closed
    assert (play.relay.refusal is not None) == (delivered == 0)


@pytest.mark.parametrize("choices", [1, 2])
@pytest.mark.parametrize("delivered", range(6))
async def test_a_breaker_that_opens_ends_every_choice_as_a_budget_would(choices, delivered):
    """With a finish, what was held back for a stop string, and the usage; before the first token, by a status."""
    call = call_for(n=choices, return_token_ids=True, stop=["END of all"], stream_options={"include_usage": True})
    play = Play(call, Engine([ids_of("the END of none")] * choices))
    (ask,) = await play.relay.asks()
    part, leg, raws, _ = play._leg(ask)
    part.events(raws[: delivered * choices])

    play.relay.fail(Ending.BREAKER, "it burns")
    await play.relay.finish()
    play.relay.close()

    play.check()
    assert leg.closed
    if play.relay.refusal is not None:
        assert (delivered <= 1, play.relay.refusal.reason) == (True, Reason.BREAKER)  # the first tells a role only
        return
    assert play.relay.ending is Ending.BREAKER
    assert set(play.seen.stop_reason.values()) == {"breaker_open"}
    assert set(play.seen.finish.values()) == {"length"}
    assert play.seen.told["ended_by"] == "breaker_open"
    for index, ids in play.seen.ids.items():
        assert play.seen.text[index] == text_of(ids, ["END of all"])


OBSTACLES = [
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"seed": 1, "temperature": 1.0}, "seed"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
]


@pytest.mark.parametrize(("said", "feature"), OBSTACLES)
async def test_what_cannot_go_on_exactly_ends_with_an_error_that_names_it(said, feature):
    """A request whose state is more than its ids ends with an error after a loss, not with garbled text."""
    play = await Play(call_for(**said), Engine([SAID]), cuts=[5]).run()

    assert play.relay.ending is Ending.UNCONTINUABLE
    assert feature in play.seen.error["message"]
    assert play.seen.error["code"] == "uncontinuable"
    assert not play.seen.done


@pytest.mark.parametrize(
    ("beyond", "feature"),
    [(b'"reasoning":"hm"', "reasoning"), (b'"tool_calls":[{"index":0}]', "tools"), (b'"refusal":"no"', "refusal")],
)
async def test_a_stream_that_turned_out_to_be_more_than_text_is_not_continued(beyond, feature):
    """Reasoning, tool calls and refusals seen in the stream keep it from going on elsewhere, by their names."""

    def spoil(leg, raws):
        return [raws[0], raws[1].replace(b'"content":"G"', beyond), *raws[2:]]

    play = await Play(call_for(), Engine([SAID]), cuts=[5], edit=spoil).run()

    assert play.relay.ending is Ending.UNCONTINUABLE
    assert f"and {feature} cannot" in play.seen.error["message"]


async def test_text_that_is_not_what_its_ids_decode_to_is_not_continued():
    """When the server's text and the tokenizer here disagree, the stream ends with an error rather than garbled."""

    def other(leg, raws):
        return [raw.replace(b'"content":"G"', b'"content":"g"') for raw in raws]

    play = await Play(call_for(), Engine([SAID]), cuts=[5], edit=other).run()

    assert play.relay.ending is Ending.UNCONTINUABLE
    assert "not what its tokens decode to" in play.seen.error["message"]


async def test_the_pause_of_a_failover_is_told_in_the_last_chunk():
    """How many servers were lost and how long the client waited rides in the last chunk."""
    play = Play(call_for(stream_options={"include_usage": True}), Engine([SAID]), cuts=[5])

    await play.run()

    assert play.seen.told == {"failovers": 1, "gap_ms": 10.0}
    assert play.relay.house.recomputed == len(PROMPT) + 4


# -------------------------------------------------------------------- a budget that ends


@given(
    st.integers(min_value=0, max_value=N + 10), st.integers(min_value=1, max_value=9),
    st.integers(min_value=1, max_value=7), st.integers(min_value=1, max_value=5), st.booleans(),
)  # fmt: skip
async def test_a_budget_is_delivered_to_its_last_token_and_not_beyond(room, step, batch, per_chunk, cut):
    """Whatever the chunks and leases, the client gets exactly what its budget pays for, and is told why it ended."""
    call = call_for(return_token_ids=True, stream_options={"include_usage": True})
    leased = len(PROMPT) + min(room, 3)
    lease = FakeLease(leased, room - min(room, 3), step)
    cuts = [6] if cut else []

    play = await Play(call, Engine([SAID]), lease=lease, batch=batch, per_chunk=per_chunk, cuts=cuts).run()

    if room >= N:
        assert (play.relay.ending, play.seen.ids[0]) == (Ending.FINISHED, SAID)
        return
    if play.relay.refusal is not None:
        assert play.relay.refusal.reason is Reason.BUDGET
        assert room < per_chunk
        return
    seen = play.seen
    assert seen.ids[0] == SAID[:room]
    assert seen.text[0] == text_of(SAID[:room])
    assert (seen.finish[0], seen.stop_reason[0], seen.done) == ("length", "budget_exceeded", True)
    assert seen.usage["completion_tokens"] == room
    assert seen.told["ended_by"] == "budget_exceeded"
    assert play.lease.meter.room == 0


async def test_events_that_wait_for_a_lease_come_in_order():
    """While a lease is asked for, its leg is paused and what was read waits; then all comes out once, in order."""
    lease = FakeLease(len(PROMPT) + 2, left=PLENTY, step=1, low=0)

    play = await Play(call_for(return_token_ids=True), Engine([SAID]), lease=lease, batch=N, per_chunk=2).run()

    assert play.seen.ids[0] == SAID
    assert play.legs[0].pauses > N // 2


async def test_nothing_is_delivered_while_a_lease_is_asked_for():
    """An event that no lease covers yet is not written, not even in part."""
    play = Play(call_for(), Engine([SAID]), lease=FakeLease(len(PROMPT) + 1, left=100, low=0))
    (ask,) = await play.relay.asks()
    part, leg, raws, _ = play._leg(ask)

    part.events(raws[:2])
    before = play.sink.data
    part.events(raws[2:5])

    assert leg.paused
    assert play.sink.data == before != b""
    play.lease.answer()
    assert not leg.paused
    assert play.sink.data.count(b"\n\n") == 5


async def test_a_prompt_larger_than_the_budget_is_refused_before_anything_is_written():
    """A prompt that the lease cannot cover gets a status, costs nothing, and no part of its answer goes out."""
    play = await Play(call_for(), Engine([SAID]), lease=FakeLease(len(PROMPT) - 1, 0), batch=5).run()

    assert play.relay.refusal.reason is Reason.BUDGET
    assert play.legs[0].closed


async def test_a_budget_that_set_max_tokens_is_named_as_the_reason():
    """Where the budget, not the client, set max_tokens, a finish at that length says so."""
    call = call_for(max_tokens=100, stream_options={"include_usage": True})

    play = await Play(call, Engine([SAID]), terms=terms_for(call, max_tokens=5, capped=True)).run()

    assert (play.seen.finish[0], play.seen.stop_reason[0]) == ("length", "budget_exceeded")
    assert (play.relay.ending, play.seen.told) == (Ending.BUDGET, {"ended_by": "budget_exceeded"})


@pytest.mark.parametrize("cut", [None, 3])
async def test_an_answer_that_was_let_in_short_says_so(cut):
    """Whether a server or the gateway words its end: its budget had nothing to do with it."""
    call = call_for(max_tokens=100, stream_options={"include_usage": True})
    terms = terms_for(call, max_tokens=5, capped=True, cap=Ending.SHORTENED)

    play = await Play(call, Engine([SAID]), cuts=[cut], terms=terms).run()

    assert (play.seen.finish[0], play.seen.stop_reason[0]) == ("length", "shortened")
    assert (play.relay.ending, play.seen.told["ended_by"]) == (Ending.SHORTENED, "shortened")


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("begun", [False, True])
async def test_only_an_error_before_the_first_token_needs_a_retry_to_be_left(cause, begun):
    """A stream that has begun goes on elsewhere, and so does one whose server is gone, whatever others retry."""
    call = call_for()
    relay = Relay(call, FakeSink(), FakeLease(), terms_for(call, retry=lambda: False), lambda: 0.0)
    engine = Engine([SAID])
    (ask,) = await relay.asks()
    part = relay.part(ask)
    part.leg = FakeLeg()
    relay.events(part, engine.events(ask, 1)[: 5 if begun else 0])

    await relay.ended(part, LegEnd(cause, "why", 500, late=cause is Cause.SILENT))

    gone = cause in (Cause.UNREACHED, Cause.BROKEN, Cause.ABANDONED, Cause.OUTRUN, Cause.MOVED)
    assert relay.delivered == begun
    assert relay.open == (begun or gone)
    if not relay.open:
        reason = Reason.FIRST_TOKEN if cause is Cause.SILENT else Reason.UPSTREAM
        assert (relay.refusal.reason, relay.refusal.retry_after_s) == (reason, 1.0)
    relay.close()


async def test_a_clients_own_max_tokens_is_not_blamed_on_the_budget():
    """A finish at the client's max_tokens has no stop_reason of ours."""
    play = await Play(call_for(max_tokens=5), Engine([SAID])).run()

    assert (play.seen.finish[0], play.seen.stop_reason[0]) == ("length", None)
    assert play.relay.ending is Ending.FINISHED


@pytest.mark.parametrize("room", range(1, 12))
async def test_a_budget_that_ends_gives_out_what_was_held_back_for_a_stop_string(room):
    """Text that the server held back lest it begin a stop string was paid for, and is given at the cut."""
    call = call_for(stop=["END of all"], return_token_ids=True)
    ids = ids_of("the END of none")

    play = await Play(call, Engine([ids]), lease=FakeLease(len(PROMPT) + room)).run()

    assert play.seen.text[0] == text_of(ids[:room], ["END of all"])


async def test_a_budget_without_a_tokenizer_ends_before_the_part_it_cannot_word():
    """Where no text can be made here, the paid part of the last chunk stays undelivered, and uncharged."""
    call = call_for(return_token_ids=True)

    play = await Play(
        call, Engine([SAID]), lease=FakeLease(len(PROMPT) + 5), per_chunk=3, terms=terms_for(call, decoder=None)
    ).run()

    assert play.seen.ids[0] == SAID[:3]
    assert play.seen.stop_reason[0] == "budget_exceeded"


async def test_every_choice_is_ended_when_the_budget_ends():
    """With n=2 the budget ends both, each with a finish."""
    call = call_for(n=2, return_token_ids=True)

    play = await Play(call, Engine([SAID, SAID[1:]]), lease=FakeLease(len(PROMPT) + 7)).run()

    assert play.seen.stop_reason == {0: "budget_exceeded", 1: "budget_exceeded"}
    assert play.relay.completion_tokens == 7


# -------------------------------------------------------------------- a client that is slow


async def test_a_client_that_is_full_pauses_its_leg_until_there_is_room():
    """A full sink pauses the leg, room resumes it, and nothing is lost."""
    play = Play(call_for(), Engine([SAID]), sink=FakeSink(full=[1]))
    (ask,) = await play.relay.asks()
    part, leg, raws, _ = play._leg(ask)

    part.events(raws[:3])
    paused = leg.paused
    play.sink.catch_up()

    assert (paused, leg.paused) == (True, False)


async def test_a_leased_stream_stays_paused_while_its_client_is_full():
    """A lease that arrives does not resume a leg whose client has yet to read."""
    play = Play(call_for(), Engine([SAID]), sink=FakeSink(full=[1, 2]), lease=FakeLease(len(PROMPT) + 1, 99, low=0))
    (ask,) = await play.relay.asks()
    part, leg, raws, _ = play._leg(ask)

    part.events(raws[:5])  # one token is covered, its write fills the client, the rest waits
    play.lease.answer()
    still = leg.paused
    play.sink.catch_up()

    assert (still, leg.paused, play.sink.writes) == (True, False, 2)


@given(st.sets(st.integers(min_value=1, max_value=40)), st.integers(min_value=2, max_value=N), st.integers(1, 9))
async def test_a_slow_client_gets_the_same_text(full, cut, step):
    """Pauses for the client, for leases and for a lost server, in any mixture, change nothing of the text."""
    lease = FakeLease(len(PROMPT), PLENTY, step, low=0)

    play = await Play(call_for(), Engine([SAID]), sink=FakeSink(sorted(full)), cuts=[cut], lease=lease).run()

    assert play.seen.text[0] == text_of(SAID)


# -------------------------------------------------------------------- text made elsewhere


def remote(broken_after: int | None = None):
    """A decoder maker over a replica's /detokenize, which fails after so many questions."""
    asked = 0

    async def decode(ids: Sequence[int]) -> str:
        nonlocal asked
        asked += 1
        if broken_after is not None and asked > broken_after:
            raise TextLost("no server's /detokenize answered")
        return tokenizer().decode(list(ids), skip_special_tokens=False)

    return partial(RemoteDecoder, decode)


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("stop", [None, "na"])
async def test_a_stream_goes_on_with_text_made_by_a_replica(batch, stop):
    """Without a tokenizer here the text is a replica's /detokenize, and the same; later tokens are not charged."""
    call = call_for(stop=stop, return_token_ids=True)
    terms = terms_for(call, decoder=remote(), spells_special=True)

    play = await Play(call, Engine([SAID]), cuts=[5], batch=batch, terms=terms).run()

    assert play.seen.text[0] == text_of(SAID, [stop] if stop else [])
    assert play.seen.done


async def test_a_budget_cut_waits_for_text_that_is_being_made():
    """Tokens whose text a replica still makes when the budget ends are delivered, in order, before the cut."""
    call = call_for(return_token_ids=True)
    terms = terms_for(call, decoder=remote(), spells_special=True)

    play = await Play(call, Engine([SAID]), cuts=[5], batch=100, lease=FakeLease(len(PROMPT) + 13), terms=terms).run()

    assert play.seen.ids[0] == SAID[:13]
    assert play.seen.text[0] == text_of(SAID[:13])


@pytest.mark.parametrize("broken_after", range(1, 30, 3))
async def test_tokens_whose_text_was_never_made_are_not_charged(broken_after):
    """When /detokenize fails in mid-answer, the stream ends with an error and only what was delivered is charged."""
    call = call_for(return_token_ids=True)
    terms = terms_for(call, decoder=remote(broken_after), spells_special=True)

    play = await Play(call, Engine([SAID]), cuts=[5], batch=100, terms=terms).run()

    assert play.relay.ending in (Ending.UPSTREAM_LOST, Ending.UNCONTINUABLE)
    assert play.seen.ids[0] == SAID[: len(play.seen.ids[0])]


class Gate:
    """A /detokenize that answers nothing while it is shut. fails: what it then does is to fail."""

    def __init__(self) -> None:
        self.open, self.asked, self.fails = asyncio.Event(), 0, False
        self.open.set()

    async def decode(self, ids: Sequence[int]) -> str:
        self.asked += 1
        await self.open.wait()
        if self.fails:
            raise TextLost("no server's /detokenize answered")
        return tokenizer().decode(list(ids), skip_special_tokens=False)


async def moved(gate: Gate, ids: Sequence[int], cut: int, per_chunk: int = 1):
    """A stream that was cut after so many events, and goes on with text made behind a gate; its second leg."""
    call = call_for(return_token_ids=True, max_tokens=5000)
    terms = terms_for(call, decoder=partial(RemoteDecoder, gate.decode), spells_special=True)
    play = Play(call, Engine([ids]), cuts=[cut], per_chunk=per_chunk, terms=terms)
    (ask,) = await play.relay.asks()
    part, leg, raws, end = play._leg(ask)
    await play.relay.ended(part, await play._feed(part, leg, raws, end))
    (ask,) = await play.relay.asks()
    return play, *play._leg(ask)


async def turns(count: int = 20) -> None:
    """Let what is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_client_that_leaves_pays_for_no_text_that_is_still_being_made():
    """Tokens whose text is still being made when the client leaves are given back; text that comes later is nothing."""
    gate = Gate()
    play, part, _, raws, _ = await moved(gate, SAID, cut=6)
    part.events(raws[:2])
    await turns()
    gate.open.clear()
    part.events(raws[2:12])
    await turns()
    counted = play.lease.counted

    play.relay.close()
    gate.open.set()
    await turns()

    received = len(play.seen.ids[0])
    assert 5 < received < counted - len(PROMPT)
    assert play.relay.completion_tokens == received
    assert play.lease.counted == play.relay.prompt_tokens + received == len(PROMPT) + received


async def test_text_that_can_no_longer_be_made_ends_the_stream_at_once():
    """When /detokenize fails, the client hears of it then, with its leg closed, not when the server is done."""
    gate = Gate()
    play, part, leg, raws, _ = await moved(gate, SAID, cut=6)
    part.events(raws[:3])
    await turns()
    gate.fails = True

    part.events(raws[3:4])
    await turns()

    assert play.relay.ending is Ending.UNCONTINUABLE
    assert leg.closed
    assert "/detokenize" in play.seen.error["message"]
    play.relay.close()
    play.check()


async def test_text_that_falls_behind_pauses_its_leg():
    """A leg waits while too many ids wait for their text, also when its client has caught up, and goes on after."""
    ids = ids_of("xyz " * 300)
    gate = Gate()
    play, part, leg, raws, end = await moved(gate, ids, cut=3, per_chunk=16)
    gate.open.clear()
    fed = 0
    while not leg.paused and fed < len(raws):
        part.events(raws[fed : fed + 1])
        fed += 1
    play.relay._out._room()
    held = leg.paused
    gate.open.set()
    await turns(500)

    assert held
    assert IDS_WAITING_MAX <= fed * 16 < IDS_WAITING_MAX + 32
    assert not leg.paused
    await play.relay.ended(part, await play._feed(part, leg, raws[fed:], end))
    await play.relay.finish()
    play.relay.close()
    play.check()
    assert (play.seen.ids[0], play.seen.text[0]) == (ids, text_of(ids))


async def test_a_bug_met_while_waiting_events_are_taken_in_reaches_the_leg():
    """An exception in a lease's answer is handed to the leg, whose flow sees it; it does not vanish in the loop."""
    play = Play(call_for(), Engine([SAID]), lease=FakeLease(len(PROMPT) + 1, left=100, low=0))
    (ask,) = await play.relay.asks()
    part, leg, raws, _ = play._leg(ask)
    part.events(raws[:5])
    play.sink.write = None

    play.lease.answer()

    assert isinstance(leg.faults[0], TypeError)


def test_the_fakes_are_what_the_relay_expects():
    """The decoder of these scenarios is the one that the product uses."""
    assert isinstance(terms_for(call_for()).decoder(), LocalDecoder)
    assert BROKEN.cause is Cause.BROKEN
    assert FakeLeg().closed is False


def cached(raws, told):
    """The usage of a server that tells what it had in its cache."""
    details = b'"usage":{"prompt_tokens_details":{"cached_tokens":%b},' % told
    return [raw.replace(b'"usage":{', details, 1) for raw in raws]


@pytest.mark.parametrize(
    ("told", "counts"), [(b"3", 3), (b"-3", 0), (b"null", 0), (b'"3"', 0), (b"true", 0), (b"[]", 0)]
)
async def test_what_the_server_had_cached_is_told_to_the_books(told, counts):
    """Where it is a number; nonsense is no reason to lose a stream."""
    play = await Play(call_for(), Engine([ids_of("cached")]), edit=lambda leg, raws: cached(raws, told)).run()

    assert (play.relay.ending, play.lease.cached) == (Ending.FINISHED, counts)


async def test_after_a_loss_nobody_knows_what_was_cached():
    """The second server had our own tokens sent to it: what it finds of these is no client's saving."""
    play = await Play(
        call_for(), Engine([ids_of("cached, and lost")]), cuts=[5], edit=lambda leg, raws: cached(raws, b"4")
    ).run()

    assert (play.relay.failovers, play.lease.cached) == (1, 0)


async def test_reasoning_is_counted_apart():
    """By the ids of chunks that bring it; the rest of the answer is none."""

    def think(leg, raws):
        return [
            raw.replace(b'"content":"', b'"content":null,"reasoning":"', 1) if 0 < number < 4 else raw
            for number, raw in enumerate(raws)
        ]

    play = await Play(call_for(), Engine([ids_of("thinks, then says")]), edit=think).run()

    assert (play.relay.ending, play.lease.reasoning) == (Ending.FINISHED, 3)
