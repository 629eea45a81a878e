"""Requests of the scenarios, and what an uninterrupted server would have answered."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtests.processes import StubProcess
from loadtests.stub_request import chat_ids
from loadtests.stub_tokenizer import VOCAB_DEFAULT, encode
from tests.loadtests.raw_client import Seen
from tests.loadtests.raw_client import ask as ask_port
from tests.processes import Gateway

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@dataclass
class House:
    """A gateway in front of an active stub and one that stands by; `key` has no budget."""

    gateway: Gateway
    active: StubProcess
    standby: StubProcess
    key: str


def order(**order: Any) -> str:
    """What the stub obeys when it stands in a prompt."""
    return f"[[stub {json.dumps(order)}]]"


def chat(said: str = "hello", **more: Any) -> dict[str, Any]:
    """A streamed chat with its ids and its usage."""
    usage = {"include_usage": True}
    common = {"model": "stub", "stream": True, "return_token_ids": True, "stream_options": usage}
    return {**common, "messages": [{"role": "user", "content": said}], **more}


def plain(said: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat that is not streamed, with its ids."""
    return {name: value for name, value in chat(said, **more).items() if name not in ("stream", "stream_options")}


def prompt_tokens(body: dict[str, Any]) -> int:
    """How many tokens the stub makes of a request's prompt."""
    if "messages" in body:
        return len(chat_ids(body["messages"], VOCAB_DEFAULT))
    return len(encode(body["prompt"]))


async def ask(
    gateway: Gateway,
    key: str | None,
    body: Any,
    path: str = CHAT,
    until: Callable[[Seen], bool] = lambda seen: False,
    **headers: str,
) -> Seen:
    """Ask the gateway once."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        given["authorization"] = f"Bearer {key}"
    seen = await ask_port(gateway.port, path, body, headers=given, until=until)
    if seen.ended == "left":
        await asyncio.sleep(0)  # the socket of a client that left is closed in the loop's next round
    return seen


async def undisturbed(stub: StubProcess, body: dict[str, Any], path: str = CHAT) -> Seen:
    """The answer of a stub that is asked directly."""
    seen = await ask_port(stub.port, path, body)
    assert (seen.status, seen.ended, seen.done) == (200, "clean", True)
    return seen


def header(seen: Seen, name: str) -> str | None:
    """One header of an answer."""
    for line in seen.head.decode("latin-1").split("\r\n")[1:]:
        said, _, value = line.partition(":")
        if said.lower() == name:
            return value.strip()
    return None


def request_id(seen: Seen) -> str:
    """The id that journal and servers know the request by."""
    found = header(seen, "x-request-id")
    assert found is not None
    return found


def error(seen: Seen) -> dict[str, Any]:
    """The error of an answer or of a stream, all of OpenAI's fields in it."""
    found: dict[str, Any] = (
        seen.json["error"] if seen.status != 200 else next(one["error"] for one in seen.events if "error" in one)
    )
    assert set(found) == {"message", "type", "param", "code"}
    return found


def usage(seen: Seen) -> tuple[int, int]:
    """(prompt, completion) tokens of the last usage."""
    said = [event["usage"] for event in seen.events if event.get("usage")] or [seen.json["usage"]]
    return said[-1]["prompt_tokens"], said[-1]["completion_tokens"]


def ids_of(seen: Seen, index: int | None = None) -> list[int]:
    """The ids of one choice, or of all, streamed or plain."""
    bodies = seen.events or ([seen.json] if seen.status == 200 and seen.ended == "clean" else [])
    choices = [choice for body in bodies for choice in body.get("choices", [])]
    return [one for choice in choices if index in (None, choice["index"]) for one in choice.get("token_ids") or []]


def text_of(seen: Seen, index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for body in seen.events for choice in body.get("choices", []) if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


def stop_reasons(seen: Seen) -> list[Any]:
    """The stop reasons of all finished choices."""
    choices = [choice for event in seen.events for choice in event.get("choices", [])]
    return [choice.get("stop_reason") for choice in choices if choice.get("finish_reason")]
