"""What a client saw of an answer: ids, text, ends and pauses, for comparing one run with another."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

NO_LIMIT = aiohttp.ClientTimeout(total=120)


@dataclass
class Answer:
    """One answer, streamed or plain, as it reached the client. Lists are indexed by choice.

    gaps_s: between events that brought tokens, in seconds. at: when each of these came, in
        unix seconds, and how many tokens there were then.
    said: the `holdfast` object of the last chunk, where there was one.
    logprobs: of the tokens of all choices, where that was asked for.
    """

    status: int = 0
    ids: list[list[int]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish: list[str | None] = field(default_factory=list)
    stop_reason: list[Any] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    gaps_s: list[float] = field(default_factory=list)
    at: list[tuple[float, int]] = field(default_factory=list)
    said: dict[str, Any] | None = None
    replica: str | None = None
    request_id: str = ""
    logprobs: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    @property
    def content(self) -> tuple[Any, ...]:
        """All that must be equal between an uninterrupted run and one that was cut."""
        usage = {name: (self.usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        return self.ids, self.text, self.finish, self.stop_reason, usage, self.error, self.done

    def take(self, choice: dict[str, Any]) -> int:
        """Add one choice of one chunk or answer; answer how many tokens it brought."""
        index = choice["index"]
        while len(self.ids) <= index:
            self.ids.append([])
            self.text.append("")
            self.finish.append(None)
            self.stop_reason.append(None)
        ids = choice.get("token_ids") or []
        said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        self.ids[index] += ids
        self.text[index] += said.get("content") or ""
        self.logprobs += _logprobs(choice.get("logprobs") or {})
        self.prompt_ids = self.prompt_ids or choice.get("prompt_token_ids") or []
        if choice.get("finish_reason"):
            self.finish[index], self.stop_reason[index] = choice["finish_reason"], choice.get("stop_reason")
        return len(ids)


def _logprobs(said: dict[str, Any]) -> list[float]:
    """As `/v1/completions` has them, or as chats have."""
    return [*(said.get("token_logprobs") or ()), *(one["logprob"] for one in said.get("content") or ())]


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    *,
    path: str = "/v1/chat/completions",
    key: str = "",
    answer: Answer | None = None,
    session_id: str = "",
    limit: aiohttp.ClientTimeout = NO_LIMIT,
) -> Answer:
    """Ask for an answer with its token ids (and, streamed, its usage) and take it all in.

    answer: what it is taken into, for whoever wants to see it grow. session_id: what its client calls the session.
    """
    body = {"return_token_ids": True} | body
    if body.get("stream"):
        body = {"stream_options": {"include_usage": True}} | body
    headers = {"authorization": f"Bearer {key}"} if key else {}
    headers |= {"x-session-id": session_id} if session_id else {}
    async with session.post(url + path, json=body, headers=headers, timeout=limit) as response:
        answer = answer or Answer()
        answer.status, answer.replica = response.status, response.headers.get("x-holdfast-replica")
        answer.request_id = response.headers.get("x-request-id", "")
        if response.content_type == "text/event-stream":
            await _stream(answer, response)
        else:
            _plain(answer, await response.json())
    return answer


def _plain(answer: Answer, body: dict[str, Any]) -> None:
    answer.error, answer.usage, answer.done = body.get("error"), body.get("usage"), True
    answer.prompt_ids = body.get("prompt_token_ids") or []
    for choice in body.get("choices", ()):
        answer.take(choice)


async def _stream(answer: Answer, response: aiohttp.ClientResponse) -> None:
    last: float | None = None
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            answer.done = True
            continue
        event = json.loads(line[6:])
        answer.error = event.get("error") or answer.error
        answer.said = event.get("holdfast") or answer.said
        answer.usage = event.get("usage") or answer.usage
        answer.prompt_ids = answer.prompt_ids or event.get("prompt_token_ids") or []
        if sum(answer.take(choice) for choice in event.get("choices", ())):
            now = time.monotonic()
            if last is not None:
                answer.gaps_s.append(now - last)
            answer.at.append((time.time(), answer.tokens))
            last = now
