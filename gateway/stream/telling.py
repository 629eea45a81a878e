"""What the client of one stream has been told, and the words for what comes next.

While the first leg lives its bytes are passed on; afterwards all is worded here, from the ids. No leg and no
budget is known here.
"""

from array import array
from binascii import crc32
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from gateway.stream import asks, continuation, replay
from gateway.stream.call import Call
from gateway.stream.choice import Choice, Words
from gateway.stream.outbox import Outbox
from gateway.stream.pace import Pace
from gateway.stream.seams import Ask, Terms
from gateway.stream.sse import END
from gateway.stream.text import Piece, TextLost, Transcript
from gateway.stream.wire import ChunkChoice, Usage, renumbered, rewritten, without_ids
from gateway.stream.wording import BUDGET_STOP, Wording, told
from guards.continuing import Continues, Way


class Telling:
    """One stream, as its client sees it.

    choices: in the client's order, with the ids delivered of each.
    prompts: the ids of each prompt, once a server told them.
    beyond: a feature seen in the stream that makes its text more than its ids.
    failovers: how often it went on elsewhere after tokens were delivered.
    seed: that was sent along since the client gave none; None while none was.
    distrusts: whether a server was there and did not replay what it was asked to.
    ended_by: what of ours ended it, where nothing broke: the budget, or a breaker.
    cached, reasoning: how much of the prompts was cached, and of the answer reasoning, as far as servers told.
    restored: of what other servers had computed already, how much was in a cache of the next one's, as far as it told.
    """

    __slots__ = (
        "_usage", "beyond", "cached", "call", "choices", "distrusts", "ended_by", "failovers", "out", "pace",
        "prompts", "reasoning", "restored", "seed", "terms", "wording",
    )  # fmt: skip

    def __init__(self, call: Call, terms: Terms, out: Outbox, pace: Pace) -> None:
        self.call, self.terms, self.out, self.pace = call, terms, out, pace
        self.choices = [Choice(index, index // call.n) for index in range(call.choices)]
        self.prompts: list[Sequence[int] | None] = [None] * len(call.prompts)
        self.beyond: str | None = None
        self.failovers = self.cached = self.reasoning = self.restored = 0
        self.seed: int | None = None
        self.distrusts = False
        self.ended_by: str | None = None
        self.wording = Wording(call)
        self._usage: bytes | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(ids) for ids in self.prompts if ids is not None)

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.ids) for choice in self.choices)

    @property
    def begun(self) -> bool:
        """Whether any token of it was delivered."""
        return any(choice.ids for choice in self.choices)

    @property
    def all_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def own_words(self) -> bool:
        """Whether any of it is worded here."""
        return any(choice.transcript is not None for choice in self.choices)

    @property
    def capped(self) -> bool:
        """Whether a choice ended because the budget set its length."""
        return any(self._capped(choice) for choice in self.choices)

    def so_far(self) -> list["array[int]"]:
        """For each choice whose prompt is known, the ids of that and of all that was delivered."""
        known = [(self.prompts[one.prompt], one.ids) for one in self.choices]
        return [array("I", prompt) + ids for prompt, ids in known if prompt is not None]

    def restart(self) -> None:
        """Nothing was delivered: the next leg begins the stream anew, as it was asked for."""
        self.out.clear()
        self.beyond = self.wording.head = self._usage = None
        self.reasoning = 0
        self.choices = [Choice(choice.index, choice.prompt) for choice in self.choices]

    # ---------------------------------------------------------------- a server's own words

    def usage(self, raw: bytes, said: Usage, choices: int) -> None:
        """Keep the server's own usage event, of so many choices: it is passed on where one leg told all of it."""
        if choices == self.call.choices and not self.own_words:
            self._usage = raw
        if self.failovers:  # what it had cached is what we sent it again
            self.cached, self.restored = 0, self.restored + said.cached
        else:
            self.cached = said.cached

    def pass_on(self, raw: bytes, choice: Choice, said: ChunkChoice) -> None:
        """Forward the engine's bytes, less what only the gateway asked for."""
        delta, beyond = said.delta, None
        if delta is not None and (beyond := delta.beyond_text) is not None:
            self.beyond = self.beyond or beyond
            choice.add_apart(delta.apart)
        choice.role_sent = True
        if said.token_ids:
            if len(said.token_ids) > 1:
                choice.together(len(said.token_ids))
            choice.ids.extend(said.token_ids)
            if beyond == "reasoning":
                self.reasoning += len(said.token_ids)
        if text := said.text if delta is None else delta.content:
            choice.characters += len(text)
            choice.crc = crc32(text.encode(), choice.crc)
        choice.finish_reason = said.finish_reason
        hide, tale = self.call.hides_reasoning and beyond == "reasoning", self._tale_with(said.finish_reason)
        if hide or tale or (said.finish_reason is not None and self._capped(choice)):
            reason = self.terms.cap.value if self._capped(choice) else None
            raw = rewritten(raw, drop_ids=not self.call.wants_ids, stop_reason=reason, drop_reasoning=hide, more=tale)
        elif not self.call.wants_ids:
            raw = without_ids(raw, has_ids=bool(said.token_ids))
        if said.index != choice.index:
            raw = renumbered(raw, said.index, choice.index)
        self.out.add(raw + END)

    def may_be_apart(self, choice: Choice) -> bool:
        """Whether text may come without its ids: from a parser, late, or as the echo of the prompt."""
        if self.beyond is not None or self.call.body.get("tools"):
            return bool(choice.ids)
        return bool(self.call.body.get("echo")) and not choice.begun

    # ---------------------------------------------------------------- our words

    async def words(self, choice: Choice) -> Words:
        """Make what will word the rest of a choice. Raises TextLost where its text cannot be made from its ids."""
        if self.terms.decoder is None:
            raise TextLost("its text cannot be made without a tokenizer or a replica's /detokenize")
        transcript = Transcript(self.call.stop, self.call.include_stop, self.call.min_tokens)
        return await choice.words(self.terms.decoder(), transcript, self.prompts[choice.prompt] or ())

    async def adopt(self, choice: Choice) -> None:
        """From here on the gateway words this choice. Raises TextLost."""
        if choice.transcript is None:
            choice.adopt(await self.words(choice))

    async def rests(self, choices: Sequence[Choice]) -> list[Ask]:
        """Ask for what is missing of these, which are worded here from now on. Raises TextLost."""
        for choice in choices:
            await self.adopt(choice)
        return [self.rest(choice) for choice in choices if not self.finish_at_length(choice)]

    def rest(self, choice: Choice) -> Ask:
        """Ask for what is missing of a choice. Raises TextLost."""
        return asks.rest(self.call, self.terms, choice, self.prompts[choice.prompt])

    def at_length(self, choice: Choice) -> bool:
        """Whether all of a choice's tokens were delivered, and only its finish is missing. Raises TextLost."""
        return len(choice.ids) >= asks.length_max(self.terms, self.prompts[choice.prompt])

    def finish_at_length(self, choice: Choice, words: Words | None = None) -> bool:
        """Finish a choice of which only the finish is missing; answer whether it was one. Raises TextLost."""
        if not self.at_length(choice):
            return False
        if words is not None:
            choice.adopt(words)
        self.worded(choice, [], (), "length", None)
        return True

    def seed_for(self, continues: Continues | None) -> int | None:
        """A seed for a replica that can use it, where the client gave none: then also noise goes on exactly.

        None for several prompts: each would draw with it, and those that are alike would have the same answer.
        """
        body = self.call.body
        usable = continues is not None and continues.seeds and len(self.call.prompts) == 1
        if not usable or body.get("seed") is not None or continuation.greedy(body):
            return None
        if self.seed is None:
            self.seed = self.terms.draw()
        return self.seed

    def way(self, continues: Continues | None) -> Way | None:
        """How it goes on at a replica that continues so much by replay; None where it cannot exactly.

        What is worded here already is not replayed: no server's words follow ours.
        """
        by_ids = self.obstacle() is None
        if continues is None or (self.distrusts and by_ids) or self.own_words:
            return Way.IDS if by_ids else None
        return Way.REPLAY if replay.obstacle(self.call, continues) is None else Way.IDS if by_ids else None

    def replays(self, choices: Iterable[Choice], continues: Continues | None) -> list[Ask]:
        """Ask for these choices by replay: all of a prompt's at once."""
        prompts = dict.fromkeys(choice.prompt for choice in choices)
        seed = self.seed if continues is not None and continues.seeds else None
        n = self.call.n
        return [
            asks.replay(self.call, self.terms, seed, self.choices[one * n : one * n + n], self.prompts[one])
            for one in prompts
        ]

    def obstacle(self, known: Iterable[Continues | None] = ()) -> str | None:
        """Name what keeps the stream from going on exactly elsewhere. known: what those can that it could go to."""
        for continues in known:
            if continues is not None and (feature := replay.obstacle(self.call, continues)) is not None:
                return feature
        feature = self.beyond or continuation.obstacle(self.call, spells_special=self.terms.spells_special)
        for choice in self.choices:
            feature = feature or continuation.repeats_obstacle(self.call, choice.ids)
        return feature

    async def stays(self, known: Sequence[Continues | None]) -> str | None:
        """Say why it could not go on exactly elsewhere; None where it could. Nothing of it is changed.

        known: what those can that it could go to.
        """
        await self.made()
        ways = [self.way(one) for one in known]
        if Way.REPLAY in ways:
            return None
        if Way.IDS not in ways:
            return f"{self.obstacle(known)} cannot be continued exactly on another"
        try:
            for choice in [one for one in self.choices if one.finish_reason is None]:
                if choice.transcript is None:
                    (await self.words(choice)).decoder.close()
                if not self.at_length(choice):
                    self.rest(choice)
        except TextLost as lost:
            return str(lost)
        return None

    async def made(self) -> None:
        """Wait until all the text is made that was asked for."""
        for choice in self.choices:
            if choice.decoder is not None:
                await choice.decoder.drained()

    def worded(
        self, choice: Choice, pieces: Sequence[Piece], ids: Sequence[int], finish: str | None, why: int | str | None
    ) -> int:
        """Write one chunk from decoded ids; answer how many count: those after a stop string are not delivered."""
        kept = choice.worded(pieces)
        transcript = choice.transcript
        assert transcript is not None
        choice.finish_reason = choice.finish_reason or finish
        if self._capped(choice):
            why = self.terms.cap.value
        reason = why if transcript.stopped is None else transcript.stopped
        self._say(choice, transcript.take(choice.finish_reason is not None), ids[:kept], reason)
        return kept

    def cut(self, choice: Choice) -> None:
        """End a choice for the sake of what ended it all, with what was held back of its text."""
        choice.finish_reason = "length"
        self._say(choice, choice.transcript.take(True) if choice.transcript else "", (), self.ended_by)

    async def last_words(
        self, choice: Choice, ids: Sequence[int], spend: Callable[[int], object], worded: Callable[..., None]
    ) -> None:
        """Word the part of the last chunk that is still paid for, then end every choice."""
        if ids and self.beyond is None and choice.finish_reason is None:
            with suppress(TextLost):  # then that part stays undelivered, and the relay gives it back
                await self.adopt(choice)
                assert choice.decoder is not None
                spend(len(ids))
                choice.decoder.push(
                    ids, lambda pieces: worded(choice, pieces, ids, "length", BUDGET_STOP), lambda lost: None
                )
                await choice.decoder.drained()
        for one in self.choices:
            if one.finish_reason is None:
                with suppress(TextLost):  # what the server held back of delivered tokens, lest it begin a stop string
                    if self.call.stop and self.beyond is None:
                        await self.adopt(one)
                self.cut(one)
        self.close()

    def error(self, detail: str, code: str) -> None:
        """End it visibly."""
        self.out.add(self.wording.error(detail, code))

    def close(self) -> None:
        """End it: usage if the client asked for it, and [DONE]."""
        if self.call.include_usage:
            self.out.add(self._last_usage())
        self.out.add(self.wording.done())

    def _last_usage(self) -> bytes:
        tale, told = self._told(), (self.prompt_tokens, self.completion_tokens)
        if self._usage is not None and not tale:
            return self._usage + END
        if self._usage is not None and self.failovers:
            return self.wording.last(self._usage, *told, tale)
        return self.wording.usage(*told, tale)

    def _tale_with(self, finish: str | None) -> dict[str, Any]:
        """What a server's own last chunk of a choice is to say besides, where no usage follows it."""
        if finish is None or not self.failovers or self.call.include_usage or not self.all_finished:
            return {}
        return self._told()

    def _say(self, choice: Choice, text: str, ids: Sequence[int], stop_reason: int | str | None) -> None:
        tale = self._told() if self.all_finished and not self.call.include_usage else {}
        prompt = len(self.prompts[choice.prompt] or ())
        self.out.add(self.wording.text(choice, text, ids, stop_reason, prompt, tale))

    def _told(self) -> dict[str, Any]:
        return told(self.failovers, self.pace.pauses, ended_by=self.ended_by)

    def _capped(self, choice: Choice) -> bool:
        return self.terms.capped and choice.finish_reason == "length" and len(choice.ids) == self.terms.max_tokens
