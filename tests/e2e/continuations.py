"""Streams cut by a proxy in front of a real vLLM, which go on by replay: as the official SDK has them, and uncut ones.

What is compared is what `openai` makes of the events: texts, reasoning, calls of tools, logprobs, ends, usage; and ids.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import APIError, AsyncOpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState

from loadtests.cutting_proxy import Cut, How
from tests.e2e.kinds import CHAT
from tests.processes import Gateway, until

AT_ONCE = 4
KNOWN_S_MAX = 60.0
EXTRA_BYTES_MAX = 300  # beyond the event that completes the last token
OURS = ("id", "created", "system_fingerprint", "holdfast")  # what two answers need not have in common


@dataclass
class Tally:
    """What came of the streams of one kind. cut: those that went on by replay; differing: in words, a few of them."""

    streams: int = 0
    cut: int = 0
    equal: int = 0
    differing: list[str] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)


async def answer(client: AsyncOpenAI, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One streamed answer as the SDK parses it, and what the gateway says of it. Raises openai.APIError."""
    more = {name: value for name, value in body.items() if name not in ("model", "messages", "prompt")}
    extra = {"return_token_ids": True} | more
    said: dict[str, Any] = {"ids": {}, "text": {}, "ends": {}, "logprobs": {}, "events": 0}
    tale: dict[str, Any] = {}
    state = ChatCompletionStreamState()
    options: Any = {"model": body["model"], "stream": True, "stream_options": {"include_usage": True}}
    if path == CHAT:
        stream: Any = await client.chat.completions.create(messages=body["messages"], extra_body=extra, **options)
    else:
        stream = await client.completions.create(prompt=body["prompt"], extra_body=extra, **options)
    async for chunk in stream:
        tale = getattr(chunk, "holdfast", None) or tale
        for choice in chunk.choices:
            _take(said, choice)
        if path == CHAT:
            state.handle_chunk(chunk)
        said["usage"] = chunk.usage.model_dump() if chunk.usage else None
    if path == CHAT:
        said["parsed"] = _plainly(state.current_completion_snapshot.model_dump())
    return said, tale


def _without_details(said: dict[str, Any]) -> dict[str, Any]:
    """The same with the counts of its usage only."""
    counts = [said["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    parsed = {name: value for name, value in said.get("parsed", {}).items() if name != "usage"}
    return said | {"usage": counts, "parsed": parsed}


def _take(said: dict[str, Any], choice: Any) -> None:
    """Add what no parser of the SDK keeps: ids; and the parts of a completion."""
    at = choice.index
    said["ids"][at] = said["ids"].get(at, []) + (getattr(choice, "token_ids", None) or [])
    said["text"][at] = said["text"].get(at, "") + (getattr(choice, "text", None) or "")
    if choice.finish_reason:
        said["ends"][at] = (choice.finish_reason, getattr(choice, "stop_reason", None))
    if choice.logprobs is not None and hasattr(choice.logprobs, "tokens"):
        known = said["logprobs"].setdefault(at, {})
        for name, value in choice.logprobs.model_dump().items():
            known[name] = known.get(name, []) + (value or [])


def _plainly(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from answer to answer: ids of the answer and of calls, of which only that there are any."""
    for choice in answer["choices"]:
        choice.pop("token_ids", None)
        for call in choice["message"].get("tool_calls") or ():
            call["id"] = bool(call["id"])
    return {name: value for name, value in answer.items() if name not in OURS}


class Requests:
    """What a proxy plans: streams are cut somewhere, in one of these ways. A reset may destroy what was sent before it.

    lengths: tokens of each request's answer, by what it says; seeds: that were sent with a request that had none.
    """

    def __init__(self, seed: int, ways: Sequence[How] = ("rst", "fin")) -> None:
        self._rng, self._ways = random.Random(seed), ways
        self.lengths: dict[str, int] = {}
        self.seeds: dict[str, int] = {}

    def plan(self, number: int, request: bytes) -> Cut | None:
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        name = body.get("user")
        if name is None or "holdfast_resume" in (body.get("vllm_xargs") or {}):
            return None
        self.seeds[name] = body.get("seed")
        tokens = self.lengths.get(name.partition("/")[0], 0)
        at = self._rng.randrange(1, max(2, tokens - 2))
        return Cut(at, self._rng.randrange(EXTRA_BYTES_MAX), self._rng.choice(self._ways)) if tokens else None


async def run(
    oracle_url: str, gateway_url: str, requests: Requests, bodies: Sequence[tuple[str, dict[str, Any]]], cuts: int,
    key: str, name: str,
) -> Tally:  # fmt: skip
    """Ask each body once without the gateway, then through it and the cutting proxy until so many streams were cut.

    Bounded: six times as many streams. name: of the kind, for the proxy to know its requests by.
    """
    tally, gate = Tally(), asyncio.Semaphore(AT_ONCE)
    async with (
        AsyncOpenAI(base_url=oracle_url + "/v1", api_key="-", max_retries=0, timeout=60) as oracle,
        AsyncOpenAI(base_url=gateway_url + "/v1", api_key=key, max_retries=0, timeout=60) as client,
    ):
        wanted = []
        for number, (path, body) in enumerate(bodies):
            whole, _ = await answer(oracle, path, body)
            requests.lengths[f"{name} {number}"] = sum(map(len, whole["ids"].values()))
            wanted.append(whole)

        async def one(number: int) -> None:
            at = number % len(bodies)
            path, body = bodies[at]
            user = f"{name} {at}/{number}"
            async with gate:
                try:
                    got, tale = await answer(client, path, body | {"user": user})
                except APIError as error:
                    tally.differing.append(f"{user}: {error}")
                    return
                want = wanted[at]
                if "seed" not in body and body.get("temperature"):
                    want, _ = await answer(oracle, path, body | {"seed": requests.seeds[user]})
            tally.streams += 1
            if tale.get("failovers"):
                tally.cut += 1
                tally.gaps_ms.append(tale["gap_ms"])
            else:  # its last events may have come in one, before the cut: then usage is the gateway's own count
                want, got = _without_details(want), _without_details(got)
            if got == want:
                tally.equal += 1
            else:
                tally.differing.append(f"{user}: {difference(want, got)}")

        done = 0
        while tally.cut < cuts and done < 6 * cuts and len(tally.differing) < 5:
            many = min(max(cuts - tally.cut, AT_ONCE), 6 * cuts - done)
            await asyncio.gather(*(one(done + number) for number in range(many)))
            done += many
    return tally


def difference(want: Any, got: Any, where: str = "") -> str:
    """The first place where two answers differ, in words."""
    if isinstance(want, dict) and isinstance(got, dict):
        for name in want.keys() | got.keys():
            if want.get(name) != got.get(name):
                return difference(want.get(name), got.get(name), f"{where}.{name}")
    if isinstance(want, list) and isinstance(got, list):
        for number, (one, other) in enumerate(zip(want, got, strict=False)):
            if one != other:
                return difference(one, other, f"{where}[{number}]")
    return f"{where}: {str(want)[:200]} became {str(got)[:200]}"


def known(gateway: Gateway) -> None:
    """Wait until all replicas are known to continue streams."""

    def all_continue() -> bool:
        told = json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])["replicas"]
        return all(one["pages"]["continues"] for one in told)

    until(all_continue, KNOWN_S_MAX)


def features(whole: dict[str, Any]) -> Counter[str]:
    """What an uncut answer shows of itself, so that a kind is known to be what its name says."""
    found: Counter[str] = Counter()
    for choice in whole.get("parsed", {}).get("choices", ()):
        message = choice["message"]
        found["reasoning"] += len(message.get("reasoning") or "")
        found["content"] += len(message.get("content") or "")
        found["calls"] += len(message.get("tool_calls") or ())
    return found
