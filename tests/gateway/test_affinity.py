"""What requests have in common."""

import json
from typing import Any

import pytest

from gateway.affinity import Affinity
from gateway.books.tenants import Tenant
from gateway.stream.call import Bounds, Call, Endpoint

ALICE, BOB = Tenant("key_a", "alice"), Tenant("key_b", "bob")
SYSTEM = {"role": "system", "content": "You are terse. " * 20}


def chat(*said: Any, session: str | None = None) -> Call:
    messages = [one if isinstance(one, dict) else {"role": "user", "content": one} for one in said]
    return parsed(Endpoint.CHAT, {"messages": messages}, session)


def text(prompt: Any) -> Call:
    return parsed(Endpoint.COMPLETIONS, {"prompt": prompt})


def parsed(endpoint: Endpoint, body: dict[str, Any], session: str | None = None) -> Call:
    call = Call(endpoint, json.dumps({"model": "m"} | body).encode(), "r", Bounds())
    call.session = session
    return call


def near(call: Call, tenant: Tenant = ALICE, salt: str | None = "salt", **how: Any) -> int | None:
    return Affinity(**how).near(call, tenant, salt)


def test_a_session_is_its_keys_own_and_its_words_do_not_matter():
    """The same name under another key is another session; what is said in it changes nothing."""
    assert near(chat("one", session="s")) == near(chat("two", session="s"))
    assert near(chat("one", session="s")) != near(chat("one", session="s"), BOB)
    assert near(chat("one", session="s")) != near(chat("one", session="t"))


def test_all_turns_of_a_conversation_begin_alike():
    """Its later turns hold its first one: they go where that went, without a session's name."""
    first = chat(SYSTEM, "What is 6 times 7?")
    later = chat(SYSTEM, "What is 6 times 7?", {"role": "assistant", "content": "42"}, "Why?")

    assert near(first) == near(later)
    assert near(first) != near(chat(SYSTEM, "What is 7 times 8?"))


@pytest.mark.parametrize("beginning", ["x" * 2048, "ü" * 2048])
def test_beyond_the_beginning_nothing_matters(beginning):
    """Requests with one long system prompt have that in common, whatever is asked."""
    system = {"role": "system", "content": beginning}

    assert near(chat(system, "one")) == near(chat(system, "two"))
    assert near(text(beginning + "one")) == near(text(beginning + "two"))
    assert near(text(beginning + "one"), prefix_bytes=8192) != near(text(beginning + "two"), prefix_bytes=8192)


def test_parts_of_a_message_are_as_its_text():
    """A list of text parts says what a string says; other parts say nothing here."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = {"role": "user", "content": [{"type": "text", "text": "hel"}, image, {"type": "text", "text": "lo"}]}

    assert near(chat(parts)) == near(chat("hello"))


@pytest.mark.parametrize("prompt", ["text", ["text", "other"], [1, 2, 3], [[1, 2, 3], [4]]])
def test_every_kind_of_prompt_has_a_beginning(prompt):
    """Text, ids and many prompts alike; of many the first one counts."""
    first = prompt[0] if isinstance(prompt[0], list | str) and isinstance(prompt, list) else prompt

    assert near(text(prompt)) == near(text(first)) is not None
    assert near(text(prompt)) != near(text("else"))


@pytest.mark.parametrize("content", [None, 7, [7], [{"text": 7}], {"text": "x"}])
def test_odd_messages_have_a_beginning_too(content):
    """What vLLM will refuse is none of routing's business."""
    assert near(chat({"role": "user", "content": content})) is not None


def test_orgs_that_share_no_cache_do_not_meet():
    """What begins alike under another salt is not cached for it; without salts all is shared."""
    assert near(chat("hello"), salt="a") != near(chat("hello"), salt="b")
    assert near(chat("hello"), salt=None) == near(chat("hello"), BOB, salt=None)


def test_each_kind_can_be_switched_off():
    """Without sessions their beginnings count; without either nothing does."""
    assert near(chat("one", session="s"), sessions=False) == near(chat("one"))
    assert near(chat("one"), prefixes=False) is None
    assert near(chat("one", session="s"), prefixes=False) == near(chat("two", session="s"))
