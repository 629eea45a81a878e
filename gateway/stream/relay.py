"""One client stream across upstream legs: who brings its tokens, who pays, how it ends.

No I/O and no tasks of its own: a leg pushes events in, the meter counts tokens, bytes go out through the
sink. What the client is told is `telling`'s.
"""

from array import array
from binascii import crc32
from collections.abc import Callable, Sequence

from gateway.stream import asks
from gateway.stream.call import Call
from gateway.stream.choice import Choice
from gateway.stream.leg_end import REQUEST_AT_FAULT, LegEnd
from gateway.stream.outbox import Outbox
from gateway.stream.pace import Pace
from gateway.stream.part import Part, close_all
from gateway.stream.races import Races
from gateway.stream.refusals import given_up, refusal, refused, unanswered
from gateway.stream.replay import replayed
from gateway.stream.seams import Ask, Lease, Sink, Terms
from gateway.stream.sse import DONE, END
from gateway.stream.standing import Standing, lost_and
from gateway.stream.telling import Telling
from gateway.stream.template import Usual, learnt
from gateway.stream.text import Piece, TextLost
from gateway.stream.wire import Chunk, ChunkChoice, UpstreamError, head_of, read
from guards.budget import Verdict
from guards.continuing import Continues, Way
from guards.refusal import CUTS, Ending, Reason, Refused


class Relay(Standing):
    """The stream as the flow sees it: `open` until it has ended, then `ending` and `detail` say how.

    refusal: set when it ended before anything was delivered; the client gets it with a status of its own.
    so_far: see `Telling`.
    """

    __slots__ = (
        "_cut", "_legs_left", "_over", "_parts", "body", "call", "detail", "lease", "meter", "pace", "refusal", "sink",
        "so_far", "terms",
    )  # fmt: skip

    def __init__(
        self, call: Call, sink: Sink, lease: Lease, terms: Terms, clock: Callable[[], float],
        on_gaps: Callable[[list[float]], None] = lambda gaps: None,
    ) -> None:  # fmt: skip
        self.call, self.sink, self.lease, self.meter, self.terms = call, sink, lease, lease.meter, terms
        self.detail = ""
        self.refusal: Refused | None = None
        self.body: bytes | None = None  # a stream has none: it went out through the sink
        self.pace = Pace(clock, on_gaps)
        self._legs_left = terms.legs_max
        self._parts: list[Part] = []
        out = Outbox(sink, self._parts)
        telling = Telling(call, terms, out, self.pace)
        super().__init__(out, telling, Races(telling, terms.hedges_max))
        self.so_far = telling.so_far
        self._cut: tuple[Choice, Sequence[int]] | None = None
        self._over = False  # nothing is written any more

    # ---------------------------------------------------------------- legs, for the flow

    async def asks(self, continues: Continues | None = None) -> list[Ask]:
        """Say what the next legs must ask for; none when the stream has ended instead.

        continues: what the replica does by replay that they go to; None: nothing.
        """
        self._legs_left -= 1
        telling = self._telling
        if not self.delivered:
            telling.restart()
            return [asks.whole(self.call, self.terms, telling.seed_for(continues))]
        way = telling.way(continues)
        if way is None:
            self.fail(*self.stuck([continues]))
            return []
        telling.failovers += 1
        orphans = [one for one in telling.choices if one.finish_reason is None and one.owner is None]
        try:
            missing = telling.replays(orphans, continues) if way is Way.REPLAY else await telling.rests(orphans)
        except TextLost as lost:
            self._uncontinuable(lost)
            return []
        self._races.recomputed += sum(ask.again for ask in missing)
        self._finish_if_told()
        self._flush()
        return missing

    async def hedges(self, silent: Sequence[Part], continues: Continues | None = None) -> list[Ask]:
        """Say what second legs must ask for beside silent ones; none where that is not exact, or not needed."""
        missing = await self._races.asks(silent, continues) if self.open else []
        self._finish_if_told()  # all may be there but an end that does not come
        self._flush()
        return missing

    def part(self, ask: Ask, on_win: Callable[[], None] | None = None) -> Part:
        """Make the receiver for one leg. on_win: of a leg that races a silent one, called if it wins."""
        part = Part(self, ask, on_win)
        if ask.replay:
            replayed(part, self._telling)
        self._parts.append(part)
        if part.racing:
            self._races.enter(part)
        else:
            for number in ask.choices:
                self._telling.choices[number].owner = part
        return part

    async def ended(self, part: Part, end: LegEnd) -> bool:
        """Take in a leg's end; answer whether its part was left unfinished, by the server's fault."""
        self._parts.remove(part)
        if part.replay is not None and part.replay.failed(end):
            self._telling.distrusts = True
        part.retire()
        if part.racing:
            self._races.withdraw(part)
            return False
        await self._telling.made()
        if not self.open:
            return False
        if end.request_at_fault and not self.delivered:
            self._refuse(refusal(end))
            return False
        mine, orphaned = self._races.unfinished(part), self.needs_leg
        for choice in mine:
            choice.owner = None
        if self.delivered:
            self.pace.lost(choice.index for choice in mine)
        for heir in dict.fromkeys(choice.rival for choice in mine if choice.rival is not None):
            self.events(heir, self._races.won(heir))
        if self.needs_leg:
            self._legs_left += end.planned and not orphaned  # what was moved used up no try
            self._lost(part.loss or end.detail, late=end.late and part.loss is None, erred=end.erred)
        self._finish_if_told()  # and the usage or [DONE] that should have followed was lost
        self._flush()
        return bool(mine)

    def fail(self, ending: Ending, detail: str) -> None:
        """End the stream with an error that the client sees, lest it pass for success, or with a cut."""
        if self.ending is not None:
            return
        if not self.delivered:
            return self._refuse(given_up(ending, detail))
        self.ending, self.detail = ending, detail
        if ending in CUTS:
            self._telling.ended_by, self._cut = ending.value, (self._telling.choices[0], ())
        else:
            self._telling.error(detail, ending.value)
        self._flush()
        close_all(self._parts)

    async def finish(self) -> None:
        """Write what an ending still owes the client: the part of a chunk that the budget pays for."""
        if self.ending in (Ending.FINISHED, *CUTS):
            await self._telling.made()
        if self._cut is not None:
            choice, ids = self._cut
            self._cut = None
            await self._telling.last_words(choice, ids, self.meter.spend, self._worded)
            self._flush()

    def close(self) -> None:
        """Leave the stream, whatever made us: from here on, what the meter counted is what was delivered."""
        self._over = True
        for part in self._parts:
            if part.racing:
                self._races.withdraw(part)
            part.retire()
        self._parts.clear()
        for choice in self._telling.choices:
            choice.owner = choice.rival = None
            if choice.decoder is not None:
                choice.decoder.close()
        self.meter.give_back(self.meter.spent - self.completion_tokens)
        self.lease.cached, self.lease.reasoning = self._telling.cached, self._telling.reasoning
        self.pace.close()

    # ---------------------------------------------------------------- events

    def events(self, part: Part, raws: list[bytes]) -> None:
        """Take in events of one leg: count them, pass them on, or have them wait for a lease."""
        if part.waiting is not None:
            part.waiting.extend(raws)
            return
        for number, raw in enumerate(raws):
            if self.ending is not None or part.loss is not None:
                break
            covered = True
            if part.early is not None:
                if self._races.early(part, raw):
                    return self.events(part, [*self._races.won(part), *raws[number + 1 :]])
            elif part.template is not None and (usual := part.template.read(raw)) is not None:
                covered = self._usual(part, raw, usual)
            else:
                covered = self._event(part, raw)
            if not covered:
                part.waiting = raws[number:]
                assert part.leg is not None
                part.leg.pause()
                break
        if self._out.sent or self.delivered or self.ending is not None:  # as _flush does
            self._out.flush(last=self.ending is not None)

    def _event(self, part: Part, raw: bytes) -> bool:
        """Take in one event; False when no lease covers it yet, and then it can be taken in again."""
        chunk = read(raw)
        if chunk is None or chunk.error is not None or not chunk.choices:
            self._apart(part, raw, chunk)
            return True
        telling, said = self._telling, chunk.choices[0]
        if len(chunk.choices) != 1 or not 0 <= said.index < len(part.choices):
            part.lose("the server sent a choice that was not asked for")
            return True
        choice, ids = telling.choices[part.choices[said.index]], said.token_ids
        if choice.owner is not part or choice.finish_reason is not None:
            return True  # a faster server brings it now, or a stop string found here ended it: that costs nothing
        prompt = chunk.prompt_token_ids or said.prompt_token_ids
        if prompt is not None and not self._charge_prompt(choice, prompt):
            return self.ending is not None
        if telling.wording.head is None:
            telling.wording.head = head_of(chunk)
        if (said.finish_reason is not None or choice.rival is not None) and self._ended_or_won(part, choice, said):
            return True
        if ids:
            if telling.prompts[choice.prompt] is None:
                part.lose("the server sent tokens without their prompt's ids")
                return True
            if not self._covered(part, choice, ids):
                return self.ending is not None
            if part.template is None and len(part.choices) == 1 and choice.index == said.index:
                part.template = learnt(raw, chunk)
        elif said.content and not telling.may_be_apart(choice) and (part.replay is None or said.finish_reason is None):
            part.lose("the server sent text without its token ids")
            return True
        if choice.transcript is None:
            telling.pass_on(raw, choice, said)
        else:
            self._reword(part, choice, ids or [], said.finish_reason, said.stop_reason)
        return True

    def _usual(self, part: Part, raw: bytes, usual: Usual) -> bool:
        """Take in text and ids of the only choice of its leg, as nearly every chunk does: few calls, each costs."""
        choice, (text, ids, bare) = self._telling.choices[part.choices[0]], usual
        if choice.owner is not part or choice.finish_reason is not None:
            return True
        if choice.rival is not None:
            choice.rival.close()
            choice.rival = None
        if not self._covered(part, choice, ids):
            return self.ending is not None
        if choice.transcript is not None:
            self._reword(part, choice, ids)
            return True
        choice.role_sent = True
        if len(ids) > 1:
            choice.together(len(ids))
        choice.ids.extend(ids)
        choice.characters += len(text)
        choice.crc = crc32(text.encode(), choice.crc)
        self._out.add((raw if self.call.wants_ids else bare) + END)
        return True

    def _covered(self, part: Part, choice: Choice, ids: Sequence[int]) -> bool:
        """Count tokens that are about to be delivered; False where no lease covers them, or not yet."""
        assert part.leg is not None
        part.leg.progress()
        part.heard += 1
        verdict = self.meter.spend(len(ids))
        if verdict is not Verdict.GO and not self._paid(verdict, choice, ids):
            return False
        self.pace.token(choice.index)
        return True

    def _ended_or_won(self, part: Part, choice: Choice, said: ChunkChoice) -> bool:
        """Whether a choice was aborted; if not, a rival has lost, for its server was not silent for good."""
        if said.finish_reason == "abort":
            part.lose("the server aborted the request")
            return True
        if choice.rival is not None and (said.token_ids or said.finish_reason):
            choice.rival.close()
            choice.rival = None
        return False

    def _apart(self, part: Part, raw: bytes, chunk: Chunk | None) -> None:
        """Take in an event that brings no choice: an error, the usage, the end, or something else."""
        if raw == DONE:
            self._finish_if_told()  # it proves nothing by itself: vLLM also writes it after errors
        elif chunk is None:
            part.lose("the server sent what is no event of vLLM's")
        elif chunk.error is not None:
            self._upstream_error(part, chunk.error)
        elif chunk.usage is not None:
            self._telling.usage(raw, chunk.usage, len(part.choices))

    def _paid(self, verdict: Verdict, choice: Choice, ids: Sequence[int]) -> bool:
        """Whether tokens were counted against the lease; ask for more in time, and wait or end where they were not."""
        if verdict is Verdict.GO:
            return True
        if verdict is Verdict.CUT:
            self._end_budget(choice, ids)
        else:
            self.lease.top_up(self._granted)
        return verdict is Verdict.TOP_UP

    def _charge_prompt(self, choice: Choice, ids: Sequence[int]) -> bool:
        """Charge a prompt when its ids are first seen, before anything of its answer is delivered."""
        prompts = self._telling.prompts
        if prompts[choice.prompt] is not None:
            return True
        if not self._paid(self.meter.prompt(len(ids), last=prompts.count(None) == 1), choice, ()):
            return False
        prompts[choice.prompt] = array("I", ids)  # kept as long as the stream: a list takes ten times as much
        if choice.decoder is not None:
            choice.decoder.prime(ids)
        return True

    def _reword(
        self, part: Part, choice: Choice, ids: list[int], finish: str | None = None, why: int | str | None = None
    ) -> None:
        """Word a chunk here, from its ids."""
        # An end-of-text or stop token has no text (vLLM leaves it out of detokenization), but it counts.
        silent = ids[-1:] if finish == "stop" and not self.call.include_stop else []

        def then(pieces: list[Piece]) -> None:
            if self._over:
                return  # given back already
            if self.ending not in (None, *CUTS) or choice.finish_reason is not None:
                self.meter.give_back(len(ids))
                return
            self._worded(choice, [*pieces, Piece(silent, "")], ids, finish, why)
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
        self, choice: Choice, pieces: Sequence[Piece], ids: Sequence[int], finish: str | None, why: int | str | None
    ) -> None:
        kept = self._telling.worded(choice, pieces, ids, finish, why)
        self.meter.give_back(len(ids) - kept)

    def _upstream_error(self, part: Part, error: UpstreamError) -> None:
        """An error event: the request's fault while nothing was delivered, else the server's."""
        if error.status in REQUEST_AT_FAULT and not self.delivered:
            self._refuse(refused(error, error.status))
        else:
            part.lose("the server answered an error in its stream")

    # ---------------------------------------------------------------- ends

    def _refuse(self, refusal: Refused) -> None:
        """End it with an error status; nothing was delivered, so nothing is charged."""
        self.ending, self.detail, self.refusal = Ending.REFUSED, refusal.detail, refusal
        self._out.clear()
        self._telling.prompts = [None] * len(self._telling.prompts)
        self.meter.clear()
        close_all(self._parts)

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

    def _lost(self, why: str, *, late: bool, erred: bool) -> None:
        """A leg was lost: may another one go on? Else the stream ends. late: by a time limit; erred: see `LegEnd`."""
        if self.delivered and self._legs_left <= 0:
            said = f"The servers that generated this answer were lost; the last: {why}."
            self.fail(Ending.SILENT if late else Ending.UPSTREAM_LOST, said)
        elif not self.delivered and (self._legs_left <= 0 or (erred and not self.terms.retry())):
            self._refuse(unanswered(why, late=late, legs_left=self._legs_left))

    def _uncontinuable(self, why: object) -> None:
        self.fail(Ending.UNCONTINUABLE, lost_and(why))

    def _end_budget(self, choice: Choice, ids: Sequence[int]) -> None:
        """The budget ended: deliver what it still pays for, and close."""
        if self.lease.failure is not None:
            return self.fail(Ending.BOOKS, "The budget of this key could not be asked for more tokens.")
        if not self.delivered:
            return self._refuse(Refused(Reason.BUDGET, "The prompt needs more tokens than the key's budget has left."))
        self.ending, self.detail = Ending.BUDGET, "The key's token budget ended."
        self._telling.ended_by, self._cut = Ending.BUDGET.value, (choice, ids[: self.meter.room])
        close_all(self._parts)

    def _finish_if_told(self) -> None:
        """Once every choice is finished: usage if the client asked for it, and the end."""
        if self.ending is None and self._telling.all_finished:
            self.ending = self.terms.cap if self._telling.capped else Ending.FINISHED
            self._telling.ended_by = self.ending.value if self._telling.capped else None
            self._telling.close()

    def _flush(self) -> None:
        """Give the client what has gathered, once there is a token or an end to give."""
        if self._out.sent or self.delivered or self.ending is not None:
            self._out.flush(last=self.ending is not None)

