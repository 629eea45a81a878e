"""What the stub remembers, for tests to see."""

import time
from collections import OrderedDict, deque
from typing import Any

import msgspec

from loadtests.stub_answer import Answer, Work

RECORDED_MAX = 256  # requests, answers per request id and aborts that the books remember


class Books:
    """Counts, open answers, and the last requests and aborts."""

    def __init__(self) -> None:
        self.requests = 0
        self._prompt_tokens = self._tokens = 0  # of answers that have ended
        self.connections = 0
        self.open: set[Answer] = set()
        self.works: OrderedDict[int, Work] = OrderedDict()
        self.aborted: deque[dict[str, Any]] = deque(maxlen=RECORDED_MAX)
        self.asked: deque[tuple[str, dict[str, str], bytes]] = deque(maxlen=RECORDED_MAX)

    def opened(self, answer: Answer) -> None:
        """Enter an answer."""
        self.requests += 1
        self.open.add(answer)
        self.works[self.requests] = answer.work
        if len(self.works) > RECORDED_MAX:
            self.works.popitem(last=False)

    def closed(self, answer: Answer, by_peer: bool) -> None:
        """Enter the end of an answer; monotonic_s is when the peer's FIN or RST was seen."""
        if answer not in self.open:
            return
        self.open.discard(answer)
        self._prompt_tokens += answer.work.prompt_tokens
        self._tokens += answer.work.tokens
        if by_peer and not answer.work.finished:
            seen = {"monotonic_s": time.monotonic(), "unix_s": time.time()}
            self.aborted.append({"request_id": answer.work.request_id, "tokens": answer.work.tokens, **seen})

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that were read, ever."""
        return self._prompt_tokens + sum(answer.work.prompt_tokens for answer in self.open)

    @property
    def tokens(self) -> int:
        """Tokens that were said, ever."""
        return self._tokens + sum(answer.work.tokens for answer in self.open)

    def report(self) -> dict[str, Any]:
        """Give it all as JSON values."""
        sent: dict[str, int] = {}
        for work in self.works.values():
            sent[work.request_id] = sent.get(work.request_id, 0) + work.tokens
        return {
            "requests": self.requests,
            "open_streams": len(self.open),
            "connections": self.connections,
            "tokens_sent_total": self.tokens,
            "tokens_sent": sent,
            "aborted": list(self.aborted),
            "recorded": [
                {"path": path, "headers": headers, "body": decoded(data)} for path, headers, data in self.asked
            ],
        }


def decoded(data: bytes) -> Any:
    """Give the JSON value, or None for anything else."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
