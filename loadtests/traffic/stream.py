"""One answer as its client sees it: bytes and the times at which they came in, what became of it out."""

from typing import Any

import msgspec

from loadtests.traffic.buckets import bucket
from loadtests.traffic.record import Record, Stage
from loadtests.traffic.sse import EventReader, TooLong

DONE = b"[DONE]"
SAID_MAX = 200  # characters of an error
BUDGET_CODES = frozenset(
    {"budget_exceeded", "budget_held", "rate_limit_exceeded", "breaker_open", "insufficient_quota"}
)
BUDGET_STATUSES = frozenset({402, 429})  # other statuses are of a budget only where the code says so


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class Watch:
    """A stream that is being read. Times in seconds, after it was asked for.

    choices: how many answers were asked for. text: of the first of them, for the next turn.
    """

    def __init__(self, record: Record, choices: int = 1) -> None:
        self.record, self.text, self.tool_calls = record, "", list[dict[str, Any]]()
        self.done = False
        self.heard_s = 0.0  # when the last event came
        self._choices, self._finished = choices, set[int]()
        self._reader, self._usage = EventReader(), None
        self._ids = self._events = 0
        self._last_s: float | None = None
        self._error = self._code = ""
        self._heard: _Usage | None = None

    @property
    def tokens(self) -> int:
        """That have come so far: counted by their ids, else events with text."""
        return self._ids or self._events

    def feed(self, data: bytes, now_s: float) -> None:
        """Take what was read at that time."""
        try:
            for event in self._reader.feed(data):
                self.heard_s = now_s
                if event == DONE:
                    self.done = True
                elif not self._error:
                    self._take(_decoder.decode(event), now_s)
        except (msgspec.DecodeError, UnicodeDecodeError, TooLong) as error:
            self._error = self._error or f"unreadable event: {error}"

    def _take(self, chunk: _Chunk, now_s: float) -> None:
        if chunk.error is not None:
            self._code, self._error = told(chunk.error)
            return
        if chunk.usage is not None:
            self._heard = chunk.usage
        for choice in chunk.choices:
            ids, delta = len(choice.token_ids or ()), choice.delta or _Delta()
            text = delta.content or choice.text or ""
            if ids or text or delta.reasoning or delta.reasoning_content or delta.tool_calls:
                self._tick(now_s)
            self._ids += ids
            if choice.index == 0:
                self.text += text
                self.tool_calls += delta.tool_calls or ()
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
                if choice.finish_reason in ("abort", "error"):
                    self._error = self._error or f"finish reason {choice.finish_reason}"

    def _tick(self, now_s: float) -> None:
        record = self.record
        self._events += 1
        if self._last_s is None:
            record.first_s = now_s
        else:
            gap_s = now_s - self._last_s
            number = bucket(gap_s)
            record.gaps[number] = record.gaps.get(number, 0) + 1
            record.gap_max_s = max(record.gap_max_s, gap_s)
        self._last_s = record.last_s = now_s

    def end(self, now_s: float, *, lost: str = "", left: bool = False, may_stop: bool = False) -> Record:
        """Say what became of it. lost: why the connection ended, where it did before the answer was whole.

        left: the client hung up. may_stop: it was to be ended by its budget.
        """
        record = self.record
        record.end_s = now_s
        if self._heard is not None:
            record.prompt_tokens = self._heard.prompt_tokens
            record.cached_tokens = (self._heard.prompt_tokens_details or _Cached()).cached_tokens or 0
        record.counted = self._ids > 0
        record.tokens = self._ids or (self._heard.completion_tokens if self._heard is not None else self._events)
        record.stage = self._stage(lost, left, may_stop)
        record.code = record.code or self._code
        return record

    def _stage(self, lost: str, left: bool, may_stop: bool) -> Stage:
        record = self.record
        if self._error or lost:
            record.said = (self._error or lost)[:SAID_MAX]
            if left and not self._error:
                return Stage.LEFT
            if may_stop and self._code in BUDGET_CODES:
                return Stage.STOPPED
            return Stage.BEFORE_FIRST if record.first_s is None else Stage.MID_STREAM
        if left:
            return Stage.LEFT
        missing = [] if self.done else ["[DONE]"]
        missing += ["finish reason"] if len(self._finished) < self._choices else []
        if missing or self._reader.begun:
            record.said = f"ended without {' and '.join(missing)}" if missing else "ended inside an event"
            return Stage.TRUNCATED
        if self._heard is None:
            record.said = "usage is missing"
            return Stage.ACCOUNTING
        said = self._heard.completion_tokens
        came = max(self._ids, self._events)
        if came > said or 0 < self._ids < said:
            record.said = f"usage says {said} tokens, {came} came"
            return Stage.ACCOUNTING
        return Stage.WHOLE


def told(error: Any) -> tuple[str, str]:
    """Code and message of an error, in whichever of the shapes that are about."""
    if isinstance(error, dict):
        inner = error.get("error", error)
        if isinstance(inner, dict):
            code = inner.get("code") or inner.get("type") or ""
            return str(code)[:64], str(inner.get("message", ""))[:SAID_MAX]
        return "", str(inner)[:SAID_MAX]
    return "", str(error)[:SAID_MAX]


def refused(record: Record, status: int, body: bytes, now_s: float, *, may_stop: bool = False) -> Record:
    """What became of a request that was answered with an error status."""
    record.status, record.end_s = status, now_s
    try:
        record.code, record.said = told(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        record.said = body[:SAID_MAX].decode(errors="replace")
    stopped = may_stop and (status in BUDGET_STATUSES or record.code in BUDGET_CODES)
    record.stage = Stage.STOPPED if stopped else Stage.REFUSED
    return record
