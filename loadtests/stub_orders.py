"""What the stub is told to do wrong, and how fast to speak.

Orders reach it in four ways; the first that names a fault wins: the request's `stub` field, the
same object as `[[stub {...}]]` in the prompt's text, faults armed by POST /stub/fault, and the
command line's `--fault --at --every`. `at` counts tokens. In a request's own order it counts from
the start of the answer, whichever server began it, so that a continuation beyond it is not hit
again; in an armed fault it counts what this server says.
"""

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

FAULTS = {
    "cut": "reset (or, with how=fin, close) the connection after token `at`",
    "cut_utf8": "the same, at the first token from `at` on that leaves a character incomplete",
    "cut_event": "close inside the bytes of the event after token `at`",
    "drip": "write every byte of the answer by itself",
    "silence": "send the head of the answer, then nothing",
    "silence_after": "send nothing more after token `at`, keep the socket",
    "wrong_usage": "claim three times the usage",
    "usage_missing": "leave the usage out although it was asked for",
    "error_then_done": "after token `at` an error event, [DONE] and a clean end",
    "abort_finish": "after token `at` finish with reason abort",
    "eof_no_done": "after token `at` a clean end without finish reason and [DONE]",
    "status": "answer with the HTTP status `status`",
    "no_ids": "leave token ids out although they were asked for",
    "bad_ids": "after token `at`, ids that are not in the vocabulary, once",
    "comments_only": "after token `at` only comment lines, forever",
    "big_event": "after token `at` one event of `bytes` bytes, then go on",
    "garbage": "after token `at` one event that is neither UTF-8 nor JSON, then go on",
}
AT_DEFAULTS = {"comments_only": 0}
AT_DEFAULT = 3
_IN_TEXT = re.compile(r"\[\[stub (\{.*?\})\]\]", re.DOTALL)


class BadOrder(ValueError):
    """An order that the stub does not understand; the text names what."""


@dataclass(frozen=True)
class Fault:
    """One thing to do wrong.

    at: tokens said before it strikes; here: `at` counts this server's tokens, not the answer's.
    """

    name: str
    at: int = AT_DEFAULT
    status: int = 503
    how: str = "rst"
    size_bytes: int = 2 << 20
    here: bool = False

    def strikes(self, start: int) -> bool:
        """Tell whether an answer that this server takes up at that position is still to be hit."""
        return self.here or start == 0 or start < self.at


@dataclass(frozen=True)
class Order:
    """How one request is to be answered.

    tokens: length of the whole answer, the end of sequence included; tokens_per_s: 0 is as fast as
    possible; per_chunk: tokens in each event; ttft_s: delay before the first token; pad: bytes by which
    each event with tokens, or a plain answer, is longer, in a field that nobody knows; cached: tokens of the
    prompt that usage says were in a cache.
    """

    tokens: int | None = None
    tokens_per_s: float = 0.0
    per_chunk: int = 1
    ttft_s: float = 0.0
    pad: int = 0
    cached: int = 0
    fault: Fault | None = None
    once: bool = False


def parse_order(given: dict[str, Any], default: Order, here: bool = False) -> Order:
    """Read an order; raises BadOrder."""
    unknown = set(given) - _FIELDS
    if unknown:
        raise BadOrder(f"unknown field in the stub's order: {', '.join(sorted(unknown))}")
    name = given.get("fault")
    try:
        fault = None if name is None else _fault(str(name), given, here)
        return Order(
            tokens=None if given.get("tokens") is None else max(1, int(given["tokens"])),
            tokens_per_s=float(given.get("tokens_per_s", default.tokens_per_s)),
            per_chunk=max(1, int(given.get("per_chunk", default.per_chunk))),
            ttft_s=float(given.get("ttft_s", default.ttft_s)),
            pad=max(0, int(given.get("pad", 0))),
            cached=max(0, int(given.get("cached", 0))),
            fault=fault,
            once=bool(given.get("once", False)),
        )
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, BadOrder) else BadOrder(f"bad value in the stub's order: {error}") from error


def order_in_text(text: str) -> dict[str, Any] | None:
    """Find an order written into a prompt."""
    found = _IN_TEXT.search(text) if "[[stub " in text else None
    if found is None:
        return None
    try:
        order = json.loads(found[1])
    except ValueError as error:
        raise BadOrder(f"the order in the prompt is not JSON: {error}") from error
    if not isinstance(order, dict):
        raise BadOrder("the order in the prompt is not a JSON object")
    return order


@dataclass
class Armory:
    """Faults that wait for requests: armed ones first, then those of the command line."""

    standing: Fault | None = None
    every: int = 1
    _armed: list[tuple[Fault, int]] = field(default_factory=list)
    _seen: int = 0
    _spent: set[str] = field(default_factory=set)

    def arm(self, fault: Fault, times: int) -> None:
        """Hit the next requests with a fault."""
        self._armed.append((fault, times))

    def disarm(self) -> None:
        """Forget all that is armed, the command line's fault too."""
        self._armed.clear()
        self.standing = None

    @property
    def armed(self) -> int:
        """How many requests will still be hit."""
        return sum(times for _, times in self._armed)

    def apply(self, order: Order, text: str) -> Order:
        """Settle which fault, if any, hits this request.

        text: the order as given; with `once`, the same text is obeyed only the first time.
        """
        self._seen += 1
        if order.fault is not None:
            if not order.once:
                return order
            if text not in self._spent:
                self._spent.add(text)
                return order
            order = replace(order, fault=None)
        return replace(order, fault=self._waiting())

    def _waiting(self) -> Fault | None:
        if self._armed:
            fault, times = self._armed.pop(0)
            if times > 1:
                self._armed.insert(0, (fault, times - 1))
            return fault
        return self.standing if self.standing is not None and self._seen % self.every == 0 else None


_FIELDS = {
    "tokens", "tokens_per_s", "per_chunk", "ttft_s", "pad", "cached", "fault", "at", "status", "how", "bytes", "once",
}  # fmt: skip


def _fault(name: str, given: dict[str, Any], here: bool) -> Fault:
    if name not in FAULTS:
        raise BadOrder(f"unknown fault: {name}")
    how = str(given.get("how", "rst"))
    if how not in ("rst", "fin"):
        raise BadOrder(f"unknown how: {how}")
    at = given.get("at")
    return Fault(
        name=name,
        at=AT_DEFAULTS.get(name, AT_DEFAULT) if at is None else max(0, int(at)),
        status=int(given.get("status", 503)),
        how=how,
        size_bytes=int(given.get("bytes", 2 << 20)),
        here=here,
    )
