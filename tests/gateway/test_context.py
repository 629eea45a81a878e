"""Prompts that come near to their limit, or beyond it, and a server that is asked only then."""

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.books.tenants import Tenant
from gateway.context import COUNTS_MAX, FITS, Contexts
from gateway.stream.call import Bounds, Call, Endpoint
from guards.estimate import PER_MESSAGE, PER_PROMPT
from guards.refusal import Reason, Refused

WINDOW = 10_000
ALICE = Tenant("key_a", "alice")
OPTED_IN = replace(ALICE, truncates=True)
PER_CHARACTER = 0.5  # tokens, in this world


class Fleet:
    window_tokens: int | None = WINDOW

    def window(self, model: str) -> int | None:
        return self.window_tokens


class Asides:
    """Counts so many tokens for each character of content; can be asked so often."""

    def __init__(self, left: int = 99, per_character: float = PER_CHARACTER) -> None:
        self.asked, self.left, self.per_character = 0, left, per_character

    async def counts(self, call: Call) -> list[int]:
        self.asked += 1
        if self.asked > self.left:
            raise Refused(Reason.NO_REPLICA, "nobody counts")
        if call.endpoint is Endpoint.CHAT:
            return [int(self.per_character * sum(len(one["content"] or "") for one in call.body["messages"]))]
        return [int(self.per_character * len(one)) for one in call.prompts]


def contexts(asides: Asides, **limits: int) -> Contexts:
    fleet: Any = Fleet()
    counter: Any = asides
    return Contexts(fleet, counter, limits)


def chat(*said: Any, **more: Any) -> Call:
    messages = [one if isinstance(one, dict) else {"role": "user", "content": one} for one in said]
    return Call(Endpoint.CHAT, json.dumps({"model": "m", "messages": messages, **more}).encode(), "r", Bounds())


def text(prompt: Any) -> Call:
    return Call(Endpoint.COMPLETIONS, json.dumps({"model": "m", "prompt": prompt}).encode(), "r", Bounds())


def words(tokens: int) -> str:
    return "x" * int(tokens / PER_CHARACTER)


def says(role: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": words(tokens), **more}


async def test_nothing_is_asked_of_what_fits_by_its_bytes():
    """Most prompts are far below; they have nothing to be told either."""
    asides = Asides()
    body_bytes = int(0.9 * WINDOW) - PER_MESSAGE - PER_PROMPT - 100

    found = await contexts(asides).fit(chat("x" * body_bytes), ALICE)

    assert (found, found.headers, found.about, asides.asked) == (FITS, (), {}, 0)


@pytest.mark.parametrize(("tokens", "told"), [(8999, False), (9000, True), (9999, True)])
async def test_who_is_near_is_told_and_who_only_looks_so_is_not(tokens, told):
    """The bytes said that it might be; the count says whether it is, and is the bound from then on."""
    call = chat(words(tokens))

    found = await contexts(Asides()).fit(call, ALICE)

    assert found.headers == ((("x-holdfast-context-used", f"{tokens}/{WINDOW}"),) if told else ())
    assert found.about == ({"context_tokens": tokens, "context_limit": WINDOW} if told else {})
    assert call.prompt_bound == tokens


@pytest.mark.parametrize("tokens", [WINDOW, WINDOW + 5])
@pytest.mark.parametrize(("ask", "param"), [(chat, "messages"), (text, "prompt")])
async def test_beyond_the_window_is_an_error_as_openai_words_it(tokens, ask, param):
    """A prompt as long as the window leaves no token for the answer."""
    with pytest.raises(Refused) as refused:
        await contexts(Asides()).fit(ask(words(tokens)), ALICE)

    assert (refused.value.reason, refused.value.param) == (Reason.CONTEXT, param)
    assert refused.value.detail.startswith(
        f"This model's maximum context length is {WINDOW} tokens. However, you requested at least {tokens + 1} tokens"
    )


async def test_of_many_prompts_each_has_the_window():
    """All of them together may be longer; the bound is of all."""
    call = text([words(6000), words(7000)])

    assert (await contexts(Asides()).fit(call, ALICE)).tokens == 7000
    assert call.prompt_bound == 13_000
    with pytest.raises(Refused):
        await contexts(Asides()).fit(text([words(10), words(WINDOW)]), ALICE)


@pytest.mark.parametrize(("limit", "holds"), [(4000, 4000), (20_000, WINDOW)])
async def test_a_model_may_answer_well_only_below_its_window(limit, holds):
    """Its own limit holds where it is the smaller one."""
    with pytest.raises(Refused, match=f"maximum context length is {holds} tokens"):
        await contexts(Asides(), m=limit).fit(chat(words(holds)), ALICE)


async def test_an_unknown_window_bounds_nothing(monkeypatch):
    """While no server has told it, and no limit is configured."""
    monkeypatch.setattr(Fleet, "window_tokens", None)
    asides = Asides()

    assert await contexts(asides).fit(chat(words(WINDOW)), ALICE) is FITS
    assert asides.asked == 0


async def test_what_cannot_be_counted_is_left_to_the_server():
    """When none answers, and where there is more than text."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    asides = Asides()

    assert await contexts(Asides(left=0)).fit(chat(words(WINDOW)), OPTED_IN) is FITS
    assert await contexts(asides).fit(chat({"role": "user", "content": [image] * 400}), ALICE) is FITS
    assert asides.asked == 0


async def test_what_cannot_be_counted_again_is_left_to_the_server_as_it_is_by_then():
    """The turns that went are told; nobody says that it is too long, for nobody knows."""
    said = conversation(4000, 4000, 4000, 1000)
    call = chat(*said)

    found = await contexts(Asides(left=1)).fit(call, OPTED_IN)

    assert (found.dropped, found.tokens, len(call.body["messages"])) == (8, 0, len(said) - 8)
    assert found.headers == (("x-holdfast-context-dropped", "8"),)


def conversation(*tokens: int) -> list[dict[str, Any]]:
    """A system prompt, turns of so many tokens with a tool's call in each, and a last question."""
    said = [says("system", 500)]
    for number, size in enumerate(tokens):
        call = {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        said += [says("user", size // 2), {"role": "assistant", "content": None, "tool_calls": [call]}]
        said += [says("tool", size // 2, tool_call_id=f"c{number}"), says("assistant", 2)]
    return [*said, says("user", 100)]


async def test_the_oldest_turns_go_where_the_key_wants_it():
    """Whole turns, calls with their results; the system's words and the last turn stay, and the client is told."""
    said = conversation(4000, 4000, 4000, 1000)
    call = chat(*said)

    found = await contexts(Asides()).fit(call, OPTED_IN)

    assert call.body["messages"] == [said[0], *said[9:]]
    assert call.messages == len(call.body["messages"])
    assert (found.dropped, found.tokens) == (8, 500 + 4002 + 1002 + 100)
    assert found.headers == (("x-holdfast-context-dropped", "8"),)
    assert found.about == {"context_dropped": 8}


async def test_an_answer_s_room_counts_where_turns_may_be_dropped():
    """Who asks for a long answer drops more; others would be answered in what is left."""
    said = conversation(3000, 3000)

    roomy, plain = chat(*said, max_tokens=5000), chat(*said, max_tokens=5000)
    found = await contexts(Asides()).fit(roomy, OPTED_IN)

    assert (found.dropped, found.tokens) == (4, 500 + 3002 + 100)
    assert (await contexts(Asides()).fit(plain, ALICE)).dropped == 0


async def test_a_prompt_that_is_not_near_may_leave_too_little_for_its_answer():
    """It is counted where its turns may be dropped, and else not."""
    said = [says("user", 1050), says("assistant", 1050), says("user", 500)]

    for who, dropped, asked in ((OPTED_IN, 2, 2), (ALICE, 0, 0)):
        asides = Asides(per_character=1.0)
        found = await contexts(asides).fit(chat(*said, max_tokens=9_000), who)
        assert (found.dropped, asides.asked) == (dropped, asked)


async def test_a_last_turn_that_is_too_long_by_itself_is_refused():
    """All that may go is gone by then; nothing of the last turn is."""
    call = chat(*conversation(3000, 3000)[:-1], says("user", WINDOW))

    with pytest.raises(Refused) as refused:
        await contexts(Asides()).fit(call, OPTED_IN)

    assert refused.value.reason is Reason.CONTEXT


async def test_without_the_key_s_word_nothing_is_dropped():
    """It is refused instead."""
    call = chat(*conversation(4000, 4000, 4000))
    before = list(call.body["messages"])

    with pytest.raises(Refused):
        await contexts(Asides()).fit(call, ALICE)

    assert call.body["messages"] == before


class Stubborn(Asides):
    """Counts as much whatever is left."""

    async def counts(self, call: Call) -> list[int]:
        self.asked += 1
        return [WINDOW + 5]


async def test_counting_is_bounded():
    """What goes is only guessed, so it is counted again, but not for every turn of a long conversation."""
    asides = Stubborn()

    with pytest.raises(Refused):
        await contexts(asides).fit(chat(*conversation(*[300] * 40)), OPTED_IN)

    assert asides.asked == 1 + COUNTS_MAX
