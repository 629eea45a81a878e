"""One client stream across upstream legs.

No I/O and no tasks of its own: a leg pushes events in, bytes go out through the sink, tokens are
counted by the meter on the way. While the first leg lives its bytes are passed on; after a leg was
lost, what follows is worded here, from the ids (see `text`).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec

from gateway.stream import continuation
from gateway.stream.call import Call, Endpoint
from gateway.stream.choice import Choice
from gateway.stream.leg_end import LegEnd
from gateway.stream.sse import DATA, DONE, END
from gateway.stream.text import Decoder, Piece, TextLost, Transcript
from gateway.stream.wire import Chunk, ChunkChoice, UpstreamError, decode_chunk, encode, rewritten, without_ids
from gateway.stream.wording import BUDGET_STOP, Wording
from guards.budget import Meter, Verdict
from guards.refusal import Ending, Reason, Refused

GAPS_BATCH = 64  # gaps between tokens that are kept before they are handed on
RETRY_AFTER_S = 1.0  # where no server is up: about one round of probes


class Sink(Protocol):
    """The client's side. Writing never waits; a full sink pauses the leg instead."""

    started: bool
    received_at: float  # when the request arrived, by the loop's clock, in seconds

    def from_replica(self, name: str, overhead_s: float) -> None:
        """Note which replica answers, and the gateway's own time before it was asked; the head tells both."""

    def write(self, data: bytes) -> bool:
        """Send bytes, the head first if it was not sent; False when the client must catch up first."""

    def on_room(self, then: Callable[[], None]) -> None:
        """Call `then` once, when a sink that was full can take more."""


class Lease(Protocol):
    """A request's hold on its budget, as far as a relay needs it."""

    meter: Meter

    def top_up(self, then: Callable[[], None]) -> None:
        """Ask for more tokens, unless that was asked already; `then` is called, later, when the meter knows."""


class LegControl(Protocol):
    """What a relay may do to the leg that feeds it."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def progress(self) -> None:
        """Tokens arrived: the leg's silence is over."""

    def fault(self, error: Exception) -> None:
        """A bug was met while its events were taken in."""


class Ask(NamedTuple):
    """What one leg is asked for; `choices[i]` is the client's number of the leg's choice i."""

    path: str
    body: bytes
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Terms:
    """What was settled before the stream began.

    legs_max: how many servers are tried, one after the other.
    max_tokens: per choice, as sent upstream; None where the model decides.
    capped: whether the budget, not the client, set max_tokens.
    decoder: makes the decoder of one choice; None where no text can be made after a loss.
    spells_special: that decoder cannot leave special tokens out.
    window: tells the model's length limit in tokens, prompt and answer together; None while no server told it.
    """

    legs_max: int
    max_tokens: int | None = None
    capped: bool = False
    decoder: Callable[[], Decoder] | None = None
    spells_special: bool = False
    window: Callable[[], int | None] = lambda: None


def refusal(end: LegEnd) -> Refused:
    """Turn a server's 4xx into the refusal that the client gets: vLLM's own words, in OpenAI's shape."""
    try:
        error = msgspec.json.decode(end.body, type=Chunk).error or UpstreamError()
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = UpstreamError()
    message = error.message or "The server refused this request."
    return Refused(Reason.UPSTREAM, message, param=error.param, status=end.status)


def given_up(ending: Ending, detail: str) -> Refused:
    """The refusal for a request that ended by us while nothing was delivered, so that it still has a status."""
    if ending is Ending.TIMEOUT:
        return Refused(Reason.UPSTREAM, detail, status=504)
    return Refused(Reason.NO_REPLICA, detail, retry_after_s=RETRY_AFTER_S)


class Part:
    """What one leg delivers to the relay."""

    def __init__(self, relay: "Relay", ask: Ask) -> None:
        self.relay, self.choices = relay, ask.choices
        self.leg: LegControl | None = None
        self.waiting: list[bytes] | None = None  # events that a lease must cover first
        self.loss: str | None = None

    @property
    def receiver(self) -> "Part":
        """Who takes in the leg's events."""
        return self

    def events(self, raws: list[bytes]) -> None:
        """Take in complete events of the leg, in order."""
        self.relay.events(self, raws)

    def lose(self, detail: str) -> None:
        """Give the leg up: what it sends is not to be trusted."""
        self.loss = detail
        self.close()

    def close(self) -> None:
        if self.leg is not None:
            self.leg.close()


class Relay:
    """The stream as the client sees it: `open` until it has ended, then `ending` and `detail` say how.

    refusal: set when it ended before anything was delivered; the client gets it with a status of its own.
    failovers, gap_s: legs lost after tokens were delivered, and the longest pause that made, in seconds.
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
        self.failovers = self.recomputed = 0
        self.gap_s = 0.0
        self.first_token_at: float | None = None
        self._last_token_at: float | None = None
        self._lost_at: float | None = None
        self._legs_left = terms.legs_max
        self._clock, self._on_gaps = clock, on_gaps
        self._gaps: list[float] = []
        self._choices = [Choice(index, index // call.n) for index in range(call.choices)]
        self._prompts: list[Sequence[int] | None] = [None] * len(call.prompts)
        self._parts: list[Part] = []
        self._out: list[bytes] = []
        self._wording = Wording(call)
        self._usage: bytes | None = None
        self._beyond: str | None = None  # a feature seen in the stream that makes its text more than its ids
        self._cut: tuple[Choice, Sequence[int]] | None = None
        self._full = False  # the sink is: it tells when there is room
        self._over = False  # nothing is written any more

    # ---------------------------------------------------------------- for the flow

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
        """Whether the client has anything of the answer; before, a lost leg is simply tried anew."""
        return self.sink.started or any(choice.ids for choice in self._choices)

    async def asks(self) -> list[Ask]:
        """Say what the next legs must ask for; none when the stream has ended instead."""
        self._legs_left -= 1
        if not self.delivered:
            self._restart()
            return [self._first_ask()]
        unfinished = [choice for choice in self._choices if choice.finish_reason is None]
        try:
            for choice in unfinished:
                await self._adopt(choice)
            asks = [self._next_ask(choice) for choice in unfinished if not self._finished_at_length(choice)]
        except TextLost as lost:
            self.fail(Ending.UNCONTINUABLE, f"The server that generated this answer was lost, and {lost}.")
            return []
        if not asks:
            self._finish()
        self._flush()
        return asks

    def part(self, ask: Ask) -> Part:
        """Make the receiver for one leg."""
        part = Part(self, ask)
        self._parts.append(part)
        return part

    async def ended(self, part: Part, end: LegEnd) -> bool:
        """Take in a leg's end; answer whether its part was left unfinished, by the server's fault."""
        self._parts.remove(part)
        try:
            for choice in self._choices:
                if choice.decoder is not None and self.open:
                    await choice.decoder.drained()
        except TextLost as lost:
            self.fail(Ending.UPSTREAM_LOST, f"This answer cannot go on: {lost}.")
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
        self._out.append(self._wording.error(detail, ending.value))
        self._flush()
        self._close_legs()

    async def finish(self) -> None:
        """Write what an ending still owes the client: the part of a chunk that the budget pays for.

        After it, what the meter counted is what was delivered.
        """
        if self.ending in (Ending.FINISHED, Ending.BUDGET):
            await self._texts_made()
        if self._cut is not None:
            choice, ids = self._cut
            self._cut = None
            await self._write_cut(choice, ids)
        self._over = True
        self.meter.give_back(self.meter.spent - self.prompt_tokens - self.completion_tokens)
        if self._gaps:
            self._on_gaps(self._gaps)

    # ---------------------------------------------------------------- events in

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
        """Take in one event; False when no lease covers it yet, and then nothing was changed."""
        if raw == DONE:
            # Proves nothing by itself: vLLM also writes it after errors. The finish reasons do.
            if self._all_finished:
                self._finish()
            return True
        try:
            chunk = decode_chunk(memoryview(raw)[len(DATA) :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
            if not self._covered(len(ids)):
                if self.meter.dry:
                    self._end_budget(choice, ids)
                return self.meter.dry
            self._note_token()
        elif said.content and self._must_count:
            part.lose("the server sent text without its token ids")
            return True
        if choice.transcript is None:
            self._pass_on(raw, choice, said)
        else:
            self._reword(part, choice, said)
        return True

    def _covered(self, tokens: int) -> bool:
        """Count tokens against the lease, asking for more in time; False when they must wait, or never come."""
        verdict = self.meter.spend(tokens)
        if verdict in (Verdict.TOP_UP, Verdict.WAIT):
            self.lease.top_up(self._granted)
        return verdict in (Verdict.GO, Verdict.TOP_UP)

    def _charge_prompt(self, choice: Choice, ids: Sequence[int] | None) -> bool:
        """Charge a prompt when its ids are first seen, before anything of its answer is delivered."""
        if ids is None or self._prompts[choice.prompt] is not None:
            return True
        if not self._covered(len(ids)):
            if self.meter.dry:
                self._end_budget(choice, ())
            return self.meter.dry
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
        elif not self.call.wants_ids and (said.token_ids or b'"prompt_token_ids":[' in raw):
            bare = without_ids(raw)
            raw = bare if bare is not raw else rewritten(raw, drop_ids=True)
        self._out.append(raw + END)

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
            if choice.finish_reason is not None and finish is None:  # a stop string found here
                part.close()
            self._flush()

        assert choice.decoder is not None
        choice.decoder.push(ids[: len(ids) - len(silent)], then)

    def _worded(
        self,
        choice: Choice,
        pieces: list[Piece],
        ids: Sequence[int],
        finish: str | None,
        stop_reason: int | str | None,
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

    # ---------------------------------------------------------------- what events mean

    @property
    def _all_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    @property
    def _must_count(self) -> bool:
        """Whether text must come with its ids. A parser may send some apart, an echo has none."""
        return self._beyond is None and not self.call.body.get("tools") and not self.call.body.get("echo")

    def _upstream_error(self, part: Part, error: UpstreamError) -> None:
        """An error event: the request's fault while nothing was delivered, else the server's."""
        if error.status < 500 and not self.delivered:
            self._refuse(Refused(Reason.UPSTREAM, error.message, param=error.param, status=error.status))
        else:
            part.lose(f"the server answered an error of type {error.type or 'unknown'}")

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
            if part.waiting is None and not self._full:
                part.leg.resume()  # also when all has ended: its answer is to be read to the end

    def _note_token(self) -> None:
        now = self._clock()
        if self._last_token_at is None:
            self.first_token_at = now
        else:
            gap = now - self._last_token_at
            self._gaps.append(gap)
            if self._lost_at is not None:
                self.gap_s, self._lost_at = max(self.gap_s, gap), None
            if len(self._gaps) >= GAPS_BATCH:
                self._on_gaps(self._gaps)
                self._gaps = []
        self._last_token_at = now

    def _capped_here(self, choice: Choice) -> bool:
        return self.terms.capped and choice.finish_reason == "length" and len(choice.ids) == self.terms.max_tokens

    # ---------------------------------------------------------------- legs

    def _restart(self) -> None:
        """Nothing was delivered: the next leg begins the stream anew, as it was asked for."""
        self._out.clear()
        self._beyond = self._wording.head = self._usage = None
        for choice in self._choices:
            choice.role_sent, choice.finish_reason = False, None

    def _first_ask(self) -> Ask:
        body = self.call.upstream_body(self.terms.max_tokens)
        body["stream_options"] = {"include_usage": True}
        if self.call.continuous_usage:
            body["stream_options"]["continuous_usage_stats"] = True
        return Ask(self.call.endpoint, encode(body), tuple(range(self.call.choices)))

    async def _adopt(self, choice: Choice) -> None:
        """From here on the gateway words this choice. Raises TextLost."""
        if choice.transcript is not None:
            return
        if self.terms.decoder is None:
            raise TextLost("its text cannot be made without a tokenizer or a replica's /detokenize")
        transcript = Transcript(self.call.stop, self.call.include_stop, self.call.min_tokens)
        await choice.adopt(self.terms.decoder(), transcript, self._prompts[choice.prompt] or ())

    def _length_max(self, choice: Choice) -> int:
        """The most tokens this choice may have, the delivered ones included. Raises TextLost where nothing tells.

        Said explicitly to the next server: /v1/completions takes a missing max_tokens for 16, a null one too,
        while the chat that is continued had all of the model's window.
        """
        window, asked = self.terms.window(), self.terms.max_tokens
        bounds = [] if asked is None else [asked]
        prompt = self._prompts[choice.prompt]
        if window is not None and prompt is not None:
            bounds.append(window - len(prompt))
        if not bounds:
            raise TextLost("how long it may become is not known")
        return min(bounds)

    def _finished_at_length(self, choice: Choice) -> bool:
        """Finish a choice whose last token was delivered and whose finish was lost with its leg."""
        if len(choice.ids) >= self._length_max(choice):
            self._worded(choice, [], (), "length", None)
        return choice.finish_reason is not None

    def _next_ask(self, choice: Choice) -> Ask:
        prompt = self._prompts[choice.prompt]
        if prompt is None:
            asked = continuation.fresh(self.call, self.call.prompts[choice.prompt], self.terms.max_tokens)
        else:
            asked = continuation.body(self.call, prompt, choice.ids, self._length_max(choice))
            self.recomputed += len(prompt) + len(choice.ids)
        return Ask(Endpoint.COMPLETIONS, encode(asked), (choice.index,))

    def _lost(self, why: str) -> None:
        """A leg was lost: may another one go on? If not, the stream ends with the reason."""
        if not self.delivered:
            if self._legs_left <= 0:
                self._refuse(Refused(Reason.UPSTREAM, f"No server could answer this request: {why}."))
            return
        self.failovers += 1
        self._lost_at = self._clock()
        feature = self._beyond or continuation.obstacle(self.call, spells_special=self.terms.spells_special)
        for choice in self._choices:
            feature = feature or continuation.repeats_obstacle(self.call, choice.ids)
        if feature is not None:
            what = f"{feature} cannot be continued exactly on another"
            self.fail(Ending.UNCONTINUABLE, f"The server that generated this answer was lost, and {what}.")
        elif self._legs_left <= 0:
            self.fail(Ending.UPSTREAM_LOST, f"The servers that generated this answer were lost; the last: {why}.")

    def _close_legs(self) -> None:
        for part in self._parts:
            part.close()

    # ---------------------------------------------------------------- endings and bytes out

    def _end_budget(self, choice: Choice, ids: Sequence[int]) -> None:
        """The budget ended: deliver what it still pays for, and close."""
        if not self.delivered:
            detail = "This request's prompt needs more tokens than are left of the key's budget."
            self._refuse(Refused(Reason.BUDGET, detail))
            return
        self.ending, self.detail = Ending.BUDGET, "The key's token budget ended."
        self._cut = (choice, ids[: self.meter.room])
        self._close_legs()

    async def _write_cut(self, choice: Choice, ids: Sequence[int]) -> None:
        """Word the part of the last chunk that was paid for, then end every choice."""
        try:
            if ids and self._beyond is None and choice.finish_reason is None:
                await self._adopt(choice)
                assert choice.decoder is not None
                self.meter.spend(len(ids))
                choice.decoder.push(ids, lambda pieces: self._worded(choice, pieces, ids, "length", BUDGET_STOP))
                await choice.decoder.drained()
        except TextLost:
            pass  # that part stays undelivered, and `finish` gives it back
        for one in self._choices:
            if one.finish_reason is None:
                if self.call.stop and self._beyond is None:
                    await self._release(one)
                one.finish_reason = "length"
                self._say(one, one.transcript.take(True) if one.transcript else "", (), BUDGET_STOP)
        self._close()
        self._flush()

    async def _texts_made(self) -> None:
        """Wait for what is being decoded; what never will be stays undelivered."""
        for choice in self._choices:
            if choice.decoder is not None:
                with suppress(TextLost):
                    await choice.decoder.drained()

    async def _release(self, choice: Choice) -> None:
        """Make ready what the server held back of delivered tokens, lest it begin a stop string."""
        try:
            await self._adopt(choice)
        except TextLost:
            self.detail += " Some text that was held back for a stop string could not be made."

    def _say(self, choice: Choice, text: str, ids: Sequence[int], stop_reason: int | str | None) -> None:
        told = self._told() if self._all_finished and not self.call.include_usage else {}
        prompt = len(self._prompts[choice.prompt] or ())
        self._out.append(self._wording.text(choice, text, ids, stop_reason, prompt, told))

    def _finish(self) -> None:
        """Every choice is finished: usage if the client asked for it, and the end."""
        if self.ending is None:
            capped = any(self._capped_here(choice) for choice in self._choices)
            self.ending = Ending.BUDGET if capped else Ending.FINISHED
            self._close()

    def _close(self) -> None:
        if self.call.include_usage:
            told = self._told()
            theirs = self._usage is not None and not told
            ours = self._wording.usage(self.prompt_tokens, self.completion_tokens, told)
            self._out.append(self._usage + END if self._usage is not None and theirs else ours)
        self._out.append(self._wording.done())

    def _told(self) -> dict[str, Any]:
        """What is known only at the end rides in the last chunk, where there is something to tell."""
        told: dict[str, Any] = {}
        if self.failovers:
            told |= {"failovers": self.failovers, "gap_ms": round(self.gap_s * 1e3, 1)}
        if self.ending is Ending.BUDGET:
            told["ended_by"] = BUDGET_STOP
        return {"holdfast": told} if told else {}

    def _flush(self) -> None:
        """Give the client what has gathered, once there is a token or an end to give."""
        if not self._out or not (self.delivered or self.ending is not None):
            return
        data = b"".join(self._out)
        self._out.clear()
        if not self.sink.write(data) and self.open:
            for part in self._parts:
                if part.leg is not None:
                    part.leg.pause()
            if not self._full:
                self._full = True
                self.sink.on_room(self._room)

    def _room(self) -> None:
        self._full = False
        for part in self._parts:
            if part.leg is not None and part.waiting is None:
                part.leg.resume()
