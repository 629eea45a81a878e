"""Small questions put to a replica beside the stream: how many tokens is this, what text are these."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.fleet.replicas import Fleet
from gateway.stream.call import Call, Endpoint
from gateway.stream.leg import Target
from gateway.stream.leg_end import LegEnd
from gateway.stream.refusals import refusal
from gateway.stream.text import TextLost
from gateway.stream.upstream import Upstream
from gateway.stream.wire import encode
from guards.refusal import Reason, Refused

TRIES_MAX = 3
COUNTED_AT_ONCE_MAX = 8  # prompts of a model, all requests together: a flood of them would slow all streams there
OWN_AT_ONCE_MAX = 2  # of one request, that the others get their turn
# What shapes the prompt of a chat, besides its messages.
TEMPLATE_FIELDS = (
    "model", "messages", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt",
    "continue_final_message", "add_special_tokens", "mm_processor_kwargs", "documents", "reasoning_effort",
)  # fmt: skip


class _Count(msgspec.Struct):
    count: int


class _Text(msgspec.Struct):
    prompt: str


class Asides:
    """Asks whichever replica is next in line, another one when that fails; each question within `timeout_s`.

    No prompt waits for longer than that while others are counted.
    """

    def __init__(self, fleet: Fleet, upstream: Upstream, targets: dict[str, Target], timeout_s: float = 5.0) -> None:
        self._fleet, self._upstream, self._targets, self._timeout_s = fleet, upstream, targets, timeout_s
        self._counting: dict[str, asyncio.Semaphore] = {}  # by model; there are as many as are served

    async def count(self, call: Call) -> int:
        """Count a request's prompt tokens over all its prompts; see `counts`."""
        return sum(await self.counts(call))

    async def counts(self, call: Call) -> list[int]:
        """Count the tokens of each prompt of a request exactly, template, tools and all.

        Raises Refused where the servers refuse the prompt or none answers.
        """
        if call.endpoint is Endpoint.CHAT:
            said = {name: call.body[name] for name in TEMPLATE_FIELDS if name in call.body}
            return [await self._count(call.model, said)]
        gate = asyncio.Semaphore(OWN_AT_ONCE_MAX)

        async def one(prompt: Any) -> int:
            if not isinstance(prompt, str):
                return len(prompt)
            special = call.body.get("add_special_tokens", True)
            async with gate:
                return await self._count(call.model, {"prompt": prompt, "add_special_tokens": special})

        counts = [asyncio.ensure_future(one(prompt)) for prompt in call.prompts]
        try:
            return await asyncio.gather(*counts)
        finally:
            for count in counts:  # those of a prompt that is refused by another one's count
                count.cancel()

    async def text(self, model: str, ids: Sequence[int]) -> str:
        """Decode ids to text, special tokens spelled out. Raises TextLost."""
        end = await self._ask(model, "/detokenize", {"model": model, "tokens": list(ids)})
        try:
            return msgspec.json.decode(end.body, type=_Text).prompt if end else _no_text()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _no_text()

    async def _count(self, model: str, said: dict[str, Any]) -> int:
        counting = self._counting.get(model) or self._counting.setdefault(
            model, asyncio.Semaphore(COUNTED_AT_ONCE_MAX)
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await counting.acquire()
        except TimeoutError:
            raise Refused(Reason.OVERLOADED, "Too many prompts are being counted now.", retry_after_s=1.0) from None
        try:
            end = await self._ask(model, "/tokenize", {"model": model} | said)
        finally:
            counting.release()
        if end is None:
            raise Refused(Reason.NO_REPLICA, "No server can count this request's tokens now.", retry_after_s=1.0)
        if end.request_at_fault:
            raise refusal(end)
        try:
            return msgspec.json.decode(end.body, type=_Count).count
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused(Reason.UNBOUNDED, "The server cannot count this request's tokens.") from None

    async def _ask(self, model: str, path: str, body: dict[str, Any]) -> LegEnd | None:
        tried: frozenset[str] = frozenset()
        for _ in range(TRIES_MAX):
            name = self._fleet.pick(model, tried)
            if name is None or name in tried:
                return None
            end = await self._upstream.fetch(self._targets[name], path, encode(body), self._timeout_s)
            if end.status == 200 or end.request_at_fault:
                return end
            tried |= {name}
        return None


def _no_text() -> str:
    raise TextLost("no server's /detokenize answered")
