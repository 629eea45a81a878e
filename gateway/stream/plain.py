"""A plain answer: asked for whole, and asked for again whole elsewhere, since nothing was delivered."""

import asyncio
from array import array
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from gateway.stream import asks
from gateway.stream.call import Call
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.pace import Pace
from gateway.stream.refusals import given_up, refusal, unanswered
from gateway.stream.seams import Ask, House, Lease, LegControl, Sink, Terms
from gateway.stream.wire import TokenIds, bare, clear_reasoning, count, details, encode
from guards.budget import Verdict
from guards.continuing import Continues, Way
from guards.refusal import Ending, Reason, Refused

UNPAID = (Verdict.WAIT, Verdict.CUT)
NULL = Raw(b"null")


class _Choice(Struct, gc=False):
    index: int = 0
    token_ids: Raw = NULL
    prompt_token_ids: Raw = NULL
    finish_reason: str | None = None


class _Answer(Struct, gc=False):
    choices: list[_Choice]
    prompt_token_ids: Raw = NULL
    usage: Raw = NULL


class _Counted(NamedTuple):
    """What an answer's ids tell: tokens of its prompts, of its choices one by one; and how many lists there are."""

    prompt: int
    completion: list[int]
    lists: int


_decode = msgspec.json.Decoder(_Answer).decode
_decode_ids = msgspec.json.Decoder(TokenIds).decode


class PlainPart:
    """One attempt at a plain answer; it takes in nothing on the way."""

    leg: LegControl | None = None
    receiver = None
    racing = False


class Plain:
    """The counterpart of `Relay` for one plain answer, built alike; but `body` is what the client gets."""

    delivered = False  # before all of it is there

    def __init__(
        self,
        call: Call,
        sink: Sink,
        lease: Lease,
        terms: Terms,
        clock: Callable[[], float],
        on_gaps: Callable[[list[float]], None] = lambda gaps: None,
    ) -> None:
        self.call, self._lease, self.meter, self.terms = call, lease, lease.meter, terms
        self.ending: Ending | None = None
        self.detail = ""
        self.refusal: Refused | None = None
        self.body: bytes | None = None
        self.prompt_tokens = self.completion_tokens = 0
        self.failovers, self.house = 0, House()
        self._ids: list[list[Raw]] = []  # of each choice, its prompt's and its own
        self.pace = Pace(clock, on_gaps)  # never gets a token: the answer comes at once
        self._legs_left = terms.legs_max
        self.needs_leg = True

    @property
    def prompt_known(self) -> bool:
        """Whether its usage was told, which is at its end."""
        return self.prompt_tokens > 0

    @property
    def open(self) -> bool:
        return self.ending is None

    def so_far(self) -> list["array[int]"]:
        """For each choice the ids of its prompt and of the answer, once that is there; none where they are no ids."""
        try:
            return [array("I", [one for ids in both for one in _decode_ids(ids)]) for both in self._ids]
        except msgspec.DecodeError:  # they were only counted
            return []

    def way(self, continues: Continues | None) -> Way | None:
        """How its rest can come from elsewhere: it cannot, since all of it comes at once."""
        return None

    def stuck(self, known: Sequence[Continues | None]) -> tuple[Ending, str]:
        """Say why it cannot go on elsewhere: it need not."""
        raise AssertionError("nothing of a plain answer was delivered")

    async def asks(self, continues: Continues | None = None) -> list[Ask]:
        """Say what the next server is asked for: always the whole request."""
        self._legs_left -= 1
        self.needs_leg = False
        return [asks.whole(self.call, self.terms)]

    async def hedges(self, silent: Sequence[PlainPart], continues: Continues | None = None) -> list[Ask]:
        """Say what second legs must ask for: nothing, since a plain answer is silent to its end."""
        return []

    def part(self, ask: Ask, on_win: Callable[[], None] | None = None) -> PlainPart:
        """Make the counterpart of a leg: a plain answer comes with the leg's end."""
        return PlainPart()

    async def ended(self, part: PlainPart, end: LegEnd) -> bool:
        """Take in a leg's end and the answer in it; tell whether there was none, by the server's fault."""
        if not self.open:
            return False
        if end.request_at_fault:
            self._refuse(refusal(end))
            return False
        lost = end.detail if end.cause is not Cause.DONE else await self._answered(end.body)
        if lost is not None:
            self.needs_leg = True
            self.failovers += 1
            if self._legs_left <= 0 or (end.erred and not self.terms.retry()):
                self._refuse(unanswered(lost, legs_left=self._legs_left))
        return lost is not None

    async def _answered(self, raw: bytes) -> str | None:
        """Count an answer by its ids, then let it go, or refuse it uncounted; say what is wrong with it."""
        try:
            answer = _decode(raw)
            raw.decode()  # also what was passed over just now
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "the server's answer is not one of vLLM's"
        for choice in answer.choices:
            if choice.finish_reason == "abort":
                return "the server aborted the request"
        if len(answer.choices) != self.call.choices:
            return "the server sent fewer answers than were asked for"
        counted = _count(answer, self.call)
        if counted is None:
            return "the server sent text without its token ids"
        prompt, completion = counted.prompt, sum(counted.completion)
        capped = self._capped(answer, counted.completion) if self.terms.capped else frozenset()
        try:
            given = self._given(raw, counted.lists, capped)
        except (msgspec.DecodeError, RecursionError):  # of what was passed over at first: numbers beyond all bounds
            return "the server's answer is not one of vLLM's"
        meter = self.meter
        if meter.prompt(prompt, last=True) in UNPAID or meter.spend(completion) in UNPAID:
            meter.clear()
            steps = partial(meter.prompt, prompt, last=True), partial(meter.spend, completion)
            if not all([await self._paid(step) for step in steps]):
                self._refuse(self._unpaid())
                return None
        self._lease.cached, told = details(answer.usage)
        self._lease.reasoning = told or (None if self._lease.reasoning_is_dear and _reasons(raw) else 0)
        self.prompt_tokens, self.completion_tokens = prompt, completion
        self._ids = _ids(answer)
        self.body = given
        self.ending = self.terms.cap if capped else Ending.FINISHED
        return None

    async def _paid(self, spend: Callable[[], Verdict]) -> bool:
        """Count tokens; where the lease does not cover them, since the prompt was longer than its bound, have more."""
        while (verdict := spend()) is Verdict.WAIT:
            told = asyncio.get_running_loop().create_future()
            self._lease.top_up(partial(told.set_result, None))
            await told
        return verdict is not Verdict.CUT

    def _unpaid(self) -> Refused:
        if self._lease.failure is not None:
            return Refused(Reason.BOOKS, "The budget could not be asked for more.", retry_after_s=1.0)
        return Refused(Reason.BUDGET, "This answer needs more than is left of the budget.")

    async def finish(self) -> None:
        """Nothing is owed: a plain answer is delivered whole or not at all."""

    def close(self) -> None:
        """Leave it; what was counted is what is delivered."""
        if self.body is None:
            self.meter.clear()
        self.pace.close()

    def fail(self, ending: Ending, detail: str) -> None:
        """Give up; nothing was delivered, so the client gets an error status."""
        if self.ending is None:
            self._refuse(given_up(ending, detail))

    def _refuse(self, refusal: Refused) -> None:
        self.ending, self.detail, self.refusal = Ending.REFUSED, refusal.detail, refusal

    def _capped(self, answer: _Answer, by_choice: Sequence[int]) -> Set[int]:
        """The choices that the budget ended, not the client's own max_tokens."""
        ended = {one.index for one in answer.choices if one.finish_reason == "length"}
        counted = zip(answer.choices, by_choice, strict=True)
        full = {one.index for one, count in counted if count == self.terms.max_tokens}
        return ended & full

    def _given(self, raw: bytes, lists: int, capped: Set[int]) -> bytes:
        """The answer as the client gets it: without what only the gateway asked for."""
        if not self.call.wants_ids:
            raw = bare(raw, lists)
        if not capped and not self.call.hides_reasoning:
            return raw
        body = msgspec.json.decode(raw)
        for choice in body["choices"]:
            if choice.get("index", 0) in capped:
                choice["stop_reason"] = self.terms.cap.value
            if self.call.hides_reasoning:
                clear_reasoning(choice.get("message"))
        return encode(body)


def _reasons(raw: bytes) -> bool:
    """Whether some of an answer is reasoning."""
    messages = [choice.get("message") or {} for choice in msgspec.json.decode(raw)["choices"]]
    return any(said.get("reasoning") or said.get("reasoning_content") for said in messages)


def _ids(answer: _Answer) -> list[list[Raw]]:
    """Of each choice the ids of its prompt, where these are told, and its own."""
    found = []
    for one in answer.choices:
        prompt = answer.prompt_token_ids if one.prompt_token_ids == NULL else one.prompt_token_ids
        if prompt != NULL:
            found.append([prompt, one.token_ids])
    return found


def _count(answer: _Answer, call: Call) -> _Counted | None:
    """Count tokens by their ids; None where these do not tell. Only completions have a prompt in each choice."""
    prompts: dict[int, int | None] = {}
    completion: list[int] = []
    lists = 0
    for choice in answer.choices:
        tokens = count(choice.token_ids)
        if tokens is None:
            return None
        completion.append(tokens)
        lists += 1
        if choice.prompt_token_ids != NULL:
            prompts[choice.index // call.n] = count(choice.prompt_token_ids)
            lists += 1
    if answer.prompt_token_ids != NULL:
        prompts[0] = count(answer.prompt_token_ids)
        lists += 1
    prompt = 0
    for asked in prompts.values():
        if asked is None:
            return None
        prompt += asked
    return _Counted(prompt, completion, lists) if len(prompts) == len(call.prompts) else None
