"""A plain answer: counted by its ids, delivered whole or not at all."""

import asyncio
import json

import pytest

from gateway.stream.call import Endpoint
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.plain import Plain
from guards.refusal import Ending, Reason
from loadtests.stub_wire import chat_choice, plain, text_choice, usage
from tests.gateway.stream.fakes import FakeLease, FakeSink, call_for, terms_for

COMPLETIONS = Endpoint.COMPLETIONS
HEAD = {"id": "x", "created": 1, "model": "tiny"}


def chat_answer(*ids, finish="stop", prompt=(1, 2, 3)):
    """vLLM's plain chat answer with one choice per list of ids."""
    choices = [chat_choice(index, "text", finish, None, one) for index, one in enumerate(ids)]
    return plain(True, HEAD, choices, usage(3, 4), "print", prompt and list(prompt))


def fine(body: bytes) -> LegEnd:
    return LegEnd(Cause.DONE, "", 200, body)


async def answer(call, *ends, leased=1000, **terms):
    """Run a plain answer over legs that end like this, and check what must hold."""
    lease = FakeLease(leased)
    whole = Plain(call, FakeSink(), lease, terms_for(call, **terms), lambda: 0.0)
    for end in ends:
        assert whole.open
        (ask,) = await whole.asks()
        ending = asyncio.create_task(whole.ended(whole.part(ask), end))
        while not ending.done():
            await asyncio.sleep(0)
            lease.answer()
        whole.lost = ending.result()
    await whole.finish()
    whole.close()
    whole.lease = lease
    assert lease.counted == whole.prompt_tokens + whole.completion_tokens
    assert (whole.body is None) == (lease.counted == 0)
    return whole


async def test_an_answer_is_counted_and_given_without_what_only_the_gateway_asked_for():
    """Prompt and answer are charged by their ids; the client gets vLLM's fields, its ids blanked."""
    raw = chat_answer([4, 5], [6])

    whole = await answer(call_for(stream=False, n=2), fine(raw))

    expected = json.loads(raw)
    expected["prompt_token_ids"] = expected["choices"][0]["token_ids"] = expected["choices"][1]["token_ids"] = None
    assert json.loads(whole.body) == expected
    assert (whole.prompt_tokens, whole.completion_tokens, whole.ending) == (3, 3, Ending.FINISHED)


@pytest.mark.parametrize("spaced", [False, True])
async def test_only_the_ids_are_taken_out(spaced):
    """What a text says of ids stays in it; ids that are not written as vLLM does are found all the same."""
    said = json.loads(chat_answer([4, 5], []))
    said["choices"][0]["message"]["content"] = text = 'so: ,"token_ids":[1,2] ]'
    raw = json.dumps(said, separators=None if spaced else (",", ":")).encode()

    whole = await answer(call_for(stream=False, n=2), fine(raw))

    given = json.loads(whole.body)
    assert given["choices"][0]["message"]["content"] == text
    assert [one["token_ids"] for one in (given["choices"])] + [given["prompt_token_ids"]] == [None, None, None]
    assert whole.completion_tokens == 2


async def test_a_client_that_asked_for_ids_gets_them():
    """return_token_ids is the client's to ask."""
    raw = chat_answer([4, 5])

    assert json.loads((await answer(call_for(return_token_ids=True), fine(raw))).body) == json.loads(raw)


@pytest.mark.parametrize(("last", "so_far"), [(5, [[1, 2, 3, 4, 5]]), (1 << 32, [])])
async def test_its_ids_are_there_for_whoever_loads_their_pages(last, so_far):
    """What is only counted may be no id: then there are none, and the answer is given all the same."""
    whole = await answer(call_for(stream=False), fine(chat_answer([4, last])))

    assert [list(ids) for ids in whole.so_far()] == so_far
    assert whole.completion_tokens == 2


async def test_each_of_several_prompts_is_charged_once():
    """With arrays of prompts and n, each prompt's ids count once."""
    choices = [text_choice(i, "t", "stop", None, [9], [1] * (2 + i // 2)) for i in range(4)]
    raw = plain(False, HEAD, choices, usage(5, 4), "print", None)

    whole = await answer(call_for(COMPLETIONS, prompt=["a", "b"], n=2), fine(raw))

    assert (whole.prompt_tokens, whole.completion_tokens) == (5, 4)


@pytest.mark.parametrize("leased", [4, 5])
async def test_an_answer_beyond_the_budget_is_not_given_and_not_charged(leased):
    """What the lease does not cover is refused whole."""
    whole = await answer(call_for(), fine(chat_answer([4, 5])), leased=leased)

    assert (whole.refusal is None) == (leased == 5)
    assert whole.refusal is None or whole.refusal.reason is Reason.BUDGET


@pytest.mark.parametrize(("capped", "reason"), [(True, "budget_exceeded"), (False, None)])
async def test_an_answer_that_the_budget_shortened_says_so(capped, reason):
    """stop_reason names the budget exactly where it, not the client, set the length that was reached."""
    whole = await answer(call_for(n=2), fine(chat_answer([4, 5], [6], finish="length")), max_tokens=2, capped=capped)

    assert [choice["stop_reason"] for choice in json.loads(whole.body)["choices"]] == [reason, None]
    assert whole.ending is (Ending.BUDGET if capped else Ending.FINISHED)


async def test_an_answer_that_was_let_in_short_says_so():
    """Its budget had nothing to do with it."""
    said = {"max_tokens": 2, "capped": True, "cap": Ending.SHORTENED}

    whole = await answer(call_for(), fine(chat_answer([4, 5], finish="length")), **said)

    assert [choice["stop_reason"] for choice in json.loads(whole.body)["choices"]] == ["shortened"]
    assert whole.ending is Ending.SHORTENED


@pytest.mark.parametrize("cause", Cause)
async def test_only_an_error_needs_a_retry_to_be_left(cause):
    """Who asked a server that died, hangs or was never there goes on elsewhere, whatever others retry."""
    gone = cause in (Cause.UNREACHED, Cause.BROKEN, Cause.ABANDONED, Cause.OUTRUN, Cause.MOVED)
    call = call_for(stream=False)
    whole = Plain(call, FakeSink(), FakeLease(), terms_for(call, retry=lambda: False), lambda: 0.0)
    (ask,) = await whole.asks()

    lost = await whole.ended(whole.part(ask), LegEnd(cause, "why", 500, b"no answer"))

    assert lost
    assert whole.needs_leg
    assert whole.open == gone
    if not gone:
        assert (whole.refusal.reason, whole.refusal.retry_after_s) == (Reason.UPSTREAM, 1.0)


NO_ANSWER = {
    "not json": b"oops",
    "not utf-8": b'{"choices":[],"x":"\xff"}',
    "no choices": b'{"id":"x"}',
    "a list": b"[]",
    "no ids": chat_answer(None),
    "no prompt ids": chat_answer([4], prompt=None),
    "ids that are none": chat_answer(["4"]),
    "ids below zero": chat_answer([-4]),
    "lists of ids": chat_answer([[4], [5]]),
    "prompt ids that are none": chat_answer([4], prompt=["1"]),
    "aborted": chat_answer([4], finish="abort"),
    "bottomless": b'{"choices":' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", NO_ANSWER.values(), ids=NO_ANSWER.keys())
async def test_an_answer_that_cannot_be_counted_is_asked_for_elsewhere(body):
    """An answer that is not vLLM's, aborted, or without its ids is not given or charged; another server is asked."""
    whole = await answer(call_for(), fine(body), fine(chat_answer([4])))

    assert (whole.ending, whole.failovers, whole.completion_tokens) == (Ending.FINISHED, 1, 1)


async def test_lost_servers_are_replaced_up_to_a_limit():
    """Each lost server is followed by another, until no more are allowed; then the client gets a status."""
    broken = LegEnd(Cause.BROKEN, "its connection ended in mid-answer")

    whole = await answer(call_for(), broken, broken, legs_max=2)

    assert (whole.ending, whole.refusal.reason) == (Ending.REFUSED, Reason.UPSTREAM)


async def test_a_request_at_fault_is_refused_at_once():
    """vLLM's 400 is the client's, in its words."""
    end = LegEnd(Cause.REFUSED, "", 400, b'{"error":{"message":"too long","param":"p","code":400}}')

    whole = await answer(call_for(), end)

    assert (whole.refusal.detail, whole.refusal.param, whole.refusal.status) == ("too long", "p", 400)


async def test_hidden_reasoning_is_taken_out():
    """A client that wants no reasoning gets none, though the server was asked for it."""
    raw = chat_answer([4]).replace(b'"reasoning":null', b'"reasoning":"hm"')

    assert b"hm" not in (await answer(call_for(include_reasoning=False), fine(raw))).body


async def test_giving_up_is_a_refusal():
    """A time limit, while nothing can have been delivered, is a status; a second end changes nothing."""
    whole = Plain(call_for(), FakeSink(), FakeLease(), terms_for(call_for()), lambda: 0.0)

    whole.fail(Ending.TIMEOUT, "too long")
    whole.fail(Ending.UPSTREAM_LOST, "gone")

    assert (whole.open, whole.refusal.detail, whole.refusal.reason) == (False, "too long", Reason.TIMEOUT)
    assert await whole.ended(whole.part(None), fine(chat_answer([4]))) is False


async def test_a_breaker_that_opens_refuses_it():
    """And says that it may be tried again."""
    whole = Plain(call_for(), FakeSink(), FakeLease(), terms_for(call_for()), lambda: 0.0)

    whole.fail(Ending.BREAKER, "it burns")

    assert (whole.refusal.reason, whole.refusal.retry_after_s) == (Reason.BREAKER, 60.0)


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000])
@pytest.mark.parametrize("said", [{"include_reasoning": False}, {}])
async def test_what_only_a_second_look_finds_is_found_before_anything_is_charged(number, said):
    """An answer must be decoded whole where ids are written oddly, or words are hidden; that may fail."""
    odd = chat_answer([4, 5]).replace(b'"token_ids":[4,5]', b'"token_ids": [4,5],"x":' + number)

    whole = await answer(call_for(**said), fine(odd), fine(chat_answer([4])))

    assert (whole.ending, whole.failovers, whole.completion_tokens) == (Ending.FINISHED, 1, 1)


async def test_ids_may_stand_on_lines_of_their_own():
    """Whatever white space there is between them."""
    raw = json.dumps(json.loads(chat_answer([4, 5], [])), indent=1).encode()

    assert (await answer(call_for(n=2), fine(raw))).completion_tokens == 2


@pytest.mark.parametrize(
    ("usage_said", "counts"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}, (2, 1)),
        ({"prompt_tokens_details": None}, (0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": "2"}}, (0, 0)),
        ({"prompt_tokens": "many"}, (0, 0)),
        (None, (0, 0)),
        ([], (0, 0)),
    ],
)
async def test_what_was_cached_and_what_was_reasoning_is_told_to_the_books(usage_said, counts):
    """Where the server's usage tells; it is charged by ids, and nonsense in it loses no answer."""
    body = json.loads(chat_answer([4, 5])) | {"usage": usage_said}

    whole = await answer(call_for(stream=False), fine(json.dumps(body).encode()))

    assert (whole.ending, whole.lease.cached, whole.lease.reasoning) == (Ending.FINISHED, *counts)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize(
    ("said", "details", "told"),
    [
        ("hm", None, None),
        ("hm", {"reasoning_tokens": 0}, None),
        ("hm", {"reasoning_tokens": 1}, 1),
        ("", None, 0),
        (None, None, 0),
    ],
)
async def test_reasoning_that_nobody_counted_is_told_as_such(field, said, details, told):
    """vLLM's parsers mostly count none of it, though the message has some."""
    body = json.loads(chat_answer([4, 5]))
    body["choices"][0]["message"][field] = said
    body["usage"]["completion_tokens_details"] = details

    whole = await answer(call_for(stream=False), fine(json.dumps(body).encode()))

    assert whole.lease.reasoning == told


async def test_a_prompt_beyond_its_bound_is_paid_for_when_it_is_known():
    """The budget had enough, and the bound was a guess: nobody is refused for that."""
    lease = FakeLease(leased=4, left=8, step=8)
    whole = Plain(call_for(stream=False), FakeSink(), lease, terms_for(call_for(stream=False)), lambda: 0.0)
    (ask,) = await whole.asks()
    ending = asyncio.create_task(whole.ended(whole.part(ask), fine(chat_answer([4, 5]))))
    await asyncio.sleep(0)
    assert not ending.done()

    lease.answer()
    await ending
    whole.close()

    assert (whole.ending, lease.meter.input, lease.meter.spent) == (Ending.FINISHED, 3, 2)


async def test_a_plain_answer_that_is_given_up_while_it_waits_costs_nothing():
    """Its prompt was counted already; nothing of it is delivered."""
    lease = FakeLease(leased=4, left=8)
    whole = Plain(call_for(stream=False), FakeSink(), lease, terms_for(call_for(stream=False)), lambda: 0.0)
    (ask,) = await whole.asks()
    ending = asyncio.create_task(whole.ended(whole.part(ask), fine(chat_answer([4, 5]))))
    await asyncio.sleep(0)

    ending.cancel()
    whole.fail(Ending.TIMEOUT, "too long")
    whole.close()

    assert (lease.meter.input, lease.meter.spent) == (0, 0)
