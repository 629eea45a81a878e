"""One client stream across upstream legs.

No I/O and no tasks of its own: a leg pushes events in, the meter counts tokens, bytes go out through the
sink. While the first leg lives its bytes are passed on; afterwards all is worded here, from the ids.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from gateway.stream import asks, continuation
from gateway.stream.call import Call
from gateway.stream.choice import Choice
from gateway.stream.leg_end import REQUEST_AT_FAULT, LegEnd
from gateway.stream.outbox import Outbox
from gateway.stream.pace import Pace
from gateway.stream.part import Part
from gateway.stream.refusals import given_up, refusal
from gateway.stream.seams import Ask, Lease, Sink, Terms
from gateway.stream.sse import DONE, END
from gateway.stream.text import Piece, TextLost, Transcript
from gateway.stream.wire import ChunkChoice, UpstreamError, read, rewritten, without_ids
from gateway.stream.wording import BUDGET_STOP, Wording, told
from guards.budget import Verdict
from guards.refusal import Ending, Reason, Refused


class Relay:
    """The stream as the client sees it: `open` until it has ended, then `ending` and `detail` say how.

    refusal: set when it ended before anything was delivered; the client gets it with a status of its own.
    failovers: how often it went on elsewhere after tokens were delivered.
    recomputed: tokens that servers computed again because of it. The house pays for those.
    """

    def __init__(
        self,
        call: Call,
        sink: Sink,
        lease: Lease,
        terms: Terms,
        clock: Callable[[], float],
        on_gaps: Callable[[list[float]], None] = lambda gaps: None,
    ) -> None:
        self.call, self.sink, self.lease, self.meter, self.terms = call, sink, lease, lease.meter, terms
        self.ending: Ending | None = None
        self.detail = ""
        self.refusal: Refused | None = None
        self.body: bytes | None = None  # a stream has none: it went out through the sink
        self.failovers = self.recomputed = 0
        self.pace = Pace(clock, on_gaps)
        self._legs_left = terms.legs_max
        self._choices = [Choice(index, index // call.n) for index in range(call.choices)]
        self._prompts: list[Sequence[int] | None] = [None] * len(call.prompts)
        self._parts: list[Part] = []
        self._out = Outbox(sink, self._parts)
        self._wording = Wording(call)
        self._usage: bytes | None = None
        self._beyond: str | None = None  # a feature seen in the stream that makes its text more than its ids
        self._cut: tuple[Choice, Sequence[int]] | None = None
        self._over = False  # nothing is written any more

    @property
    def open(self) -> bool:
        return self.ending is None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(ids) for ids in self._prompts if ids is not None)

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.ids) for choice in self._choices)

    @property
    def delivered(self) -> bool:
        """Whether the client has any of it; before, a lost leg is simply tried anew."""
        return self.sink.started or any(choice.ids for choice in self._choices)

    async def asks(self) -> list[Ask]:
        """Say what the next legs must ask for; none when the stream has ended instead."""
        self._legs_left -= 1
        if not self.delivered:
            self._restart()
            return [asks.whole(self.call, self.terms)]
        self.failovers += 1
        unfinished = [choice for choice in self._choices if choice.finish_reason is None]
        try:
            for choice in unfinished:
                await self._adopt(choice)
            missing = [self._rest(choice) for choice in unfinished if not self._finished_at_length(choice)]
        except TextLost as lost:
            self._uncontinuable(lost)
            return []
        if not missing:
            self._finish()
        self._flush()
        return missing

    def part(self, ask: Ask) -> Part:
        """Make the receiver for one leg."""
        part = Part(self.events, ask)
        self._parts.append(part)
        return part

    async def ended(self, part: Part, end: LegEnd) -> bool:
        """Take in a leg's end; answer whether its part was left unfinished, by the server's fault."""
        self._parts.remove(part)
        await self._texts_made()
        if not self.open:
            return False
        if end.request_at_fault and not self.delivered:
            self._refuse(refusal(end))
            return False
        if any(self._choices[number].finish_reason is None for number in part.choices):
            self._lost(part.loss or end.detail)
            return True
        if self._all_finished:  # and the usage or [DONE] that should have followed was lost
            self._finish()
            self._flush()
        return False

    def fail(self, ending: Ending, detail: str) -> None:
        """End the stream with an error that the client sees; a clean end would pass for success."""
        if self.ending is not None:
            return
        if not self.delivered:
            self._refuse(given_up(ending, detail))
            return
        self.ending, self.detail = ending, detail
        self._out.add(self._wording.error(detail, ending.value))
        self._flush()
        self._close_legs()

    async def finish(self) -> None:
        """Write what an ending still owes the client: the part of a chunk that the budget pays for."""
        if self.ending in (Ending.FINISHED, Ending.BUDGET):
            await self._texts_made()
        if self._cut is not None:
            choice, ids = self._cut
            self._cut = None
            await self._write_cut(choice, ids)

    def close(self) -> None:
        """Leave the stream, whatever made us: from here on, what the meter counted is what was delivered."""
        self._over = True
        for choice in self._choices:
            if choice.decoder is not None:
                choice.decoder.close()
        self.meter.give_back(self.meter.spent - self.prompt_tokens - self.completion_tokens)
        self.pace.flush()

    def events(self, part: Part, raws: list[bytes]) -> None:
        """Take in events of one leg: count them, pass them on, or have them wait for a lease."""
        if part.waiting is not None:
            part.waiting.extend(raws)
            return
        for number, raw in enumerate(raws):
            if self.ending is not None or part.loss is not None:
                break
            if not self._event(part, raw):
                part.waiting = raws[number:]
                assert part.leg is not None
                part.leg.pause()
                break
        self._flush()

    def _event(self, part: Part, raw: bytes) -> bool:
        """Take in one event; False when no lease covers it yet, and then it can be taken in again."""
        if raw == DONE:
            if self._all_finished:  # [DONE] proves nothing by itself: vLLM also writes it after errors
                self._finish()
            return True
        chunk = read(raw)
        if chunk is None:
            part.lose("the server sent what is no event of vLLM's")
            return True
        if chunk.error is not None:
            self._upstream_error(part, chunk.error)
            return True
        if not chunk.choices:
            self._usage = raw if chunk.usage is not None else self._usage
            return True
        said = chunk.choices[0]
        if len(chunk.choices) != 1 or not 0 <= said.index < len(part.choices):
            part.lose("the server sent a choice that was not asked for")
            return True
        choice = self._choices[part.choices[said.index]]
        if not self._charge_prompt(choice, chunk.prompt_token_ids or said.prompt_token_ids):
            return False
        self._wording.head = self._wording.head or chunk
        return self.ending is not None or self._choice_event(part, raw, choice, said)

    def _choice_event(self, part: Part, raw: bytes, choice: Choice, said: ChunkChoice) -> bool:
        ids = said.token_ids
        if choice.finish_reason is not None:
            return True  # a stop string found here ended it; what its server said until it noticed costs nothing
        if said.finish_reason == "abort":
            part.lose("the server aborted the request")
            return True
        if ids:
            if self._prompts[choice.prompt] is None:
                part.lose("the server sent tokens without their prompt's ids")
                return True
            assert part.leg is not None
            part.leg.progress()
            if not self._paid(choice, len(ids), ids):
                return self.ending is not None
            self.pace.token(choice.index)
        elif said.content and not self._may_be_apart(choice):
            part.lose("the server sent text without its token ids")
            return True
        if choice.transcript is None:
            self._pass_on(raw, choice, said)
        else:
            self._reword(part, choice, said)
        return True

    def _paid(self, choice: Choice, tokens: int, ids: Sequence[int]) -> bool:
        """Count tokens against the lease, asking for more in time; where they are not covered, wait, or end here."""
        verdict = self.meter.spend(tokens)
        if verdict is Verdict.CUT:
            self._end_budget(choice, ids)
        elif verdict is not Verdict.GO:
            self.lease.top_up(self._granted)
        return verdict in (Verdict.GO, Verdict.TOP_UP)

    def _charge_prompt(self, choice: Choice, ids: Sequence[int] | None) -> bool:
        """Charge a prompt when its ids are first seen, before anything of its answer is delivered."""
        if ids is None or self._prompts[choice.prompt] is not None:
            return True
        if not self._paid(choice, len(ids), ()):
            return self.ending is not None
        self._prompts[choice.prompt] = ids
        if choice.decoder is not None:
            choice.decoder.prime(ids)
        return True

    def _pass_on(self, raw: bytes, choice: Choice, said: ChunkChoice) -> None:
        """Forward the engine's bytes, less what only the gateway asked for."""
        if said.delta is not None and self._beyond is None:
            self._beyond = said.delta.beyond_text
        choice.role_sent = True
        choice.passed(said.token_ids or (), said.content)
        choice.finish_reason = said.finish_reason
        hide = self.call.hides_reasoning and said.delta is not None and said.delta.beyond_text == "reasoning"
        if hide or self._capped_here(choice):
            reason = BUDGET_STOP if self._capped_here(choice) else None
            raw = rewritten(raw, drop_ids=not self.call.wants_ids, stop_reason=reason, drop_reasoning=hide)
        elif not self.call.wants_ids:
            raw = without_ids(raw, has_ids=bool(said.token_ids))
        self._out.add(raw + END)

    def _reword(self, part: Part, choice: Choice, said: ChunkChoice) -> None:
        """Word a chunk here, from its ids."""
        ids, finish = said.token_ids or [], said.finish_reason
        # An end-of-text or stop token has no text (vLLM leaves it out of detokenization), but it counts.
        silent = ids[-1:] if finish == "stop" and not self.call.include_stop else []

        def then(pieces: list[Piece]) -> None:
            if self._over:
                return  # given back already
            if self.ending not in (None, Ending.BUDGET) or choice.finish_reason is not None:
                self.meter.give_back(len(ids))
                return
            self._worded(choice, [*pieces, Piece(silent, "")], ids, finish, said.stop_reason)
            if part.behind and choice.decoder is not None and choice.decoder.room:
                part.behind = False
                self._resume(part)
            if choice.finish_reason is not None and finish is None:  # a stop string found here
                part.close()
            self._flush()

        assert choice.decoder is not None
        if not choice.decoder.push(ids[: len(ids) - len(silent)], then, self._uncontinuable) and part.leg is not None:
            part.behind = True
            part.leg.pause()

    def _worded(
        self, choice: Choice, pieces: list[Piece], ids: Sequence[int], finish: str | None, stop_reason: int | str | None
    ) -> None:
        """Write one chunk from decoded ids; those after a stop string are neither delivered nor charged."""
        kept = choice.worded(pieces)
        self.meter.give_back(len(ids) - kept)
        transcript = choice.transcript
        assert transcript is not None
        choice.finish_reason = choice.finish_reason or finish
        if self._capped_here(choice):
            stop_reason = BUDGET_STOP
        reason = stop_reason if transcript.stopped is None else transcript.stopped
        self._say(choice, transcript.take(choice.finish_reason is not None), ids[:kept], reason)

    def _may_be_apart(self, choice: Choice) -> bool:
        """Whether text may come without its ids: from a parser, late, or as the echo of the prompt."""
        if self._beyond is not None or self.call.body.get("tools"):
            return bool(choice.ids)
        return bool(self.call.body.get("echo")) and not choice.begun

    @property
    def _all_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    def _upstream_error(self, part: Part, error: UpstreamError) -> None:
        """An error event: the request's fault while nothing was delivered, else the server's."""
        if error.status in REQUEST_AT_FAULT and not self.delivered:
            self._refuse(Refused(Reason.UPSTREAM, error.message, param=error.param, status=error.status))
        else:
            part.lose("the server answered an error in its stream")

    def _refuse(self, refusal: Refused) -> None:
        """End it with an error status; nothing was delivered, so nothing is charged."""
        self.ending, self.detail, self.refusal = Ending.REFUSED, refusal.detail, refusal
        self._out.clear()
        self._prompts = [None] * len(self._prompts)
        self.meter.give_back(self.meter.spent)
        self._close_legs()

    def _granted(self) -> None:
        """A lease was answered: take in what waited for it."""
        for part in list(self._parts):
            waiting, part.waiting = part.waiting, None
            if waiting is None or part.leg is None:
                continue
            try:
                self.events(part, waiting)
            except Exception as error:
                part.leg.fault(error)
            self._resume(part)  # also when all has ended: its answer is to be read to the end

    def _resume(self, part: Part) -> None:
        if part.leg is not None and not part.held and not self._out.full:
            part.leg.resume()

    def _capped_here(self, choice: Choice) -> bool:
        return self.terms.capped and choice.finish_reason == "length" and len(choice.ids) == self.terms.max_tokens

    def _restart(self) -> None:
        """Nothing was delivered: the next leg begins the stream anew, as it was asked for."""
        self._out.clear()
        self._beyond = self._wording.head = self._usage = None
        self._choices = [Choice(choice.index, choice.prompt) for choice in self._choices]

    async def _adopt(self, choice: Choice) -> None:
        """From here on the gateway words this choice. Raises TextLost."""
        if choice.transcript is not None:
            return
        if self.terms.decoder is None:
            raise TextLost("its text cannot be made without a tokenizer or a replica's /detokenize")
        transcript = Transcript(self.call.stop, self.call.include_stop, self.call.min_tokens)
        await choice.adopt(self.terms.decoder(), transcript, self._prompts[choice.prompt] or ())

    def _finished_at_length(self, choice: Choice) -> bool:
        """Finish a choice whose last token was delivered and whose finish was lost with its leg."""
        if len(choice.ids) >= asks.length_max(self.terms, self._prompts[choice.prompt]):
            self._worded(choice, [], (), "length", None)
        return choice.finish_reason is not None

    def _rest(self, choice: Choice) -> Ask:
        prompt = self._prompts[choice.prompt]
        ask = asks.rest(self.call, self.terms, choice, prompt)
        self.recomputed += 0 if prompt is None else len(prompt) + len(choice.ids)
        return ask

    def _lost(self, why: str) -> None:
        """A leg was lost: may another one go on? If not, the stream ends with the reason."""
        if not self.delivered:
            if self._legs_left <= 0:
                self._refuse(Refused(Reason.UPSTREAM, f"No server could answer this request: {why}."))
            return
        self.pace.lost(choice.index for choice in self._choices if choice.finish_reason is None)
        feature = self._beyond or continuation.obstacle(self.call, spells_special=self.terms.spells_special)
        for choice in self._choices:
            feature = feature or continuation.repeats_obstacle(self.call, choice.ids)
        if feature is not None:
            self._uncontinuable(f"{feature} cannot be continued exactly on another")
        elif self._legs_left <= 0:
            self.fail(Ending.UPSTREAM_LOST, f"The servers that generated this answer were lost; the last: {why}.")

    def _uncontinuable(self, why: object) -> None:
        self.fail(Ending.UNCONTINUABLE, f"The server that generated this answer was lost, and {why}.")

    def _close_legs(self) -> None:
        for part in self._parts:
            part.close()

    def _end_budget(self, choice: Choice, ids: Sequence[int]) -> None:
        """The budget ended: deliver what it still pays for, and close."""
        if self.lease.failure is not None:
            self.fail(Ending.BOOKS, "The budget of this key could not be asked for more tokens.")
            return
        if not self.delivered:
            self._refuse(Refused(Reason.BUDGET, "The prompt needs more tokens than are left of the key's budget."))
            return
        self.ending, self.detail = Ending.BUDGET, "The key's token budget ended."
        self._cut = (choice, ids[: self.meter.room])
        self._close_legs()

    async def _write_cut(self, choice: Choice, ids: Sequence[int]) -> None:
        """Word the part of the last chunk that was paid for, then end every choice."""
        if ids and self._beyond is None and choice.finish_reason is None:
            with suppress(TextLost):  # then that part stays undelivered, and `close` gives it back
                await self._adopt(choice)
                assert choice.decoder is not None
                self.meter.spend(len(ids))
                worded = partial(self._worded, choice, ids=ids, finish="length", stop_reason=BUDGET_STOP)
                choice.decoder.push(ids, worded, lambda lost: None)
                await choice.decoder.drained()
        for one in self._choices:
            if one.finish_reason is None:
                with suppress(TextLost):  # what the server held back of delivered tokens, lest it begin a stop string
                    if self.call.stop and self._beyond is None:
                        await self._adopt(one)
                one.finish_reason = "length"
                self._say(one, one.transcript.take(True) if one.transcript else "", (), BUDGET_STOP)
        self._close()
        self._flush()

    async def _texts_made(self) -> None:
        for choice in self._choices:
            if choice.decoder is not None:
                await choice.decoder.drained()

    def _say(self, choice: Choice, text: str, ids: Sequence[int], stop_reason: int | str | None) -> None:
        tale = self._told() if self._all_finished and not self.call.include_usage else {}
        prompt = len(self._prompts[choice.prompt] or ())
        self._out.add(self._wording.text(choice, text, ids, stop_reason, prompt, tale))

    def _finish(self) -> None:
        """Every choice is finished: usage if the client asked for it, and the end."""
        if self.ending is None:
            capped = any(self._capped_here(choice) for choice in self._choices)
            self.ending = Ending.BUDGET if capped else Ending.FINISHED
            self._close()

    def _close(self) -> None:
        if self.call.include_usage:
            tale = self._told()
            ours = self._wording.usage(self.prompt_tokens, self.completion_tokens, tale)
            self._out.add(self._usage + END if self._usage is not None and not tale else ours)
        self._out.add(self._wording.done())

    def _told(self) -> dict[str, Any]:
        return told(self.failovers, self.pace.pauses, by_budget=self.ending is Ending.BUDGET)

    def _flush(self) -> None:
        """Give the client what has gathered, once there is a token or an end to give."""
        if self.delivered or self.ending is not None:
            self._out.flush(last=self.ending is not None)
