"""Races: a second leg beside a silent one, and whichever brings the next token wins.

A suspicion may be wrong. The silent leg stays, so a wrong one costs the house some tokens and the client nothing;
a right one costs the client the time that the second server needs for its first token.
"""

from collections.abc import Sequence

from gateway.stream import asks
from gateway.stream.choice import Choice, Words
from gateway.stream.part import EARLY_EVENTS_MAX, Part
from gateway.stream.seams import Ask, House
from gateway.stream.sse import DONE
from gateway.stream.telling import Telling
from gateway.stream.text import TextLost
from gateway.stream.wire import Chunk, ChunkChoice, read
from guards.continuing import Continues, Way


class Races:
    """The races of one stream.

    recomputed: tokens that servers were sent again so that the stream could go on elsewhere; the house pays.
    hedged: the same for races that the first leg won, or that were given up.
    """

    __slots__ = (
        "_left", "_telling", "hedged", "recomputed",
    )  # fmt: skip

    def __init__(self, telling: Telling, hedges_max: int) -> None:
        self._telling, self._left = telling, hedges_max
        self.recomputed = self.hedged = 0

    @property
    def house(self) -> House:
        """What was computed for nobody's money, as far as servers told that they had none of it."""
        restored = min(self.recomputed, max(self._telling.restored, self._telling.call.ahead))
        return House(self.recomputed - restored, restored, self.hedged)

    async def asks(self, silent: Sequence[Part], continues: Continues | None) -> list[Ask]:
        """Say what second legs must ask for beside silent ones; none where that is not exact, or not needed.

        continues: what their server does by replay. A race that both legs are too slow for is given up, to be run
        again with a third.
        """
        for part in silent:
            if part.racing:
                part.close()
        if self._left <= 0 or not any(self._stuck(part) for part in silent):
            return []
        telling = self._telling
        if not self._delivered:
            return [asks.whole(telling.call, telling.terms, telling.seed_for(continues))]
        way = telling.way(continues)
        if way is Way.REPLAY:
            return telling.replays(self._wholly_stuck(silent), continues)
        if way is None:
            return []
        try:
            missing = [ask for part in silent for ask in await self._rest(part)]
        except TextLost:
            return []
        return missing

    def enter(self, part: Part) -> None:
        """A leg begins to race those that bring its choices."""
        self._left -= 1
        for number in part.choices:
            self._telling.choices[number].rival = part

    def early(self, part: Part, raw: bytes) -> bool:
        """Keep an event of a leg that races; answer whether it brings a token, and so wins."""
        assert part.early is not None
        part.early.append(raw)
        chunk = understood(part, raw) if raw != DONE else None
        if chunk is None:
            return False
        if chunk.error is not None or len(part.early) > EARLY_EVENTS_MAX:
            part.lose("the server brought no token")
        return chunk.error is None and any(said.token_ids or _ended(part, said) for said in chunk.choices)

    def won(self, part: Part) -> list[bytes]:
        """A rival brings its choices from here on, and the legs that it outran are closed; answers its first events."""
        early, part.early = part.early or [], None
        telling = self._telling
        outrun = dict.fromkeys(telling.choices[number].owner for number in part.choices)
        if self._delivered:
            telling.failovers += 1
            telling.pace.lost(part.choices)
        else:
            telling.restart()
        self.recomputed += part.again
        for number in part.choices:
            choice = telling.choices[number]
            choice.owner, choice.rival = part, None
            if part.words is not None:
                choice.adopt(part.words)
        for loser in outrun:
            if loser is not None and not self.unfinished(loser):
                loser.close()
        assert part.on_win is not None
        part.on_win()
        return early

    def withdraw(self, part: Part) -> None:
        """A race was lost, or given up: what its server computed was for nothing."""
        self.hedged += part.again
        if part.words is not None:
            part.words.decoder.close()
        for choice in self._telling.choices:
            if choice.rival is part:
                choice.rival = None

    async def _rest(self, part: Part) -> list[Ask]:
        """Ask for the rest of what a silent leg owes. Raises TextLost."""
        telling, heard = self._telling, part.heard
        await telling.made()
        words: dict[int, Words | None] = {}
        for choice in self._stuck(part):
            words[choice.index] = None if choice.transcript is not None else await telling.words(choice)
        if part.heard != heard:
            return []  # tokens came while we waited
        found = []
        for choice in self._stuck(part):
            if not telling.finish_at_length(choice, words[choice.index]):
                found.append(telling.rest(choice)._replace(words=words[choice.index]))
        return found

    @property
    def _delivered(self) -> bool:
        """Whether the client has any of it."""
        return self._telling.out.sent or self._telling.begun

    def unfinished(self, part: Part) -> list[Choice]:
        """Those choices that a leg has yet to finish."""
        choices = (self._telling.choices[number] for number in part.choices)
        return [choice for choice in choices if choice.owner is part and choice.finish_reason is None]

    def _wholly_stuck(self, silent: Sequence[Part]) -> list[Choice]:
        """Those choices that wait for these legs and no others, as all do that are of the same prompt."""
        stuck = [one for part in silent for one in self._stuck(part)]
        busy = {one.prompt for one in self._telling.choices if one.finish_reason is None and one not in stuck}
        return [one for one in stuck if one.prompt not in busy]

    def _stuck(self, part: Part) -> list[Choice]:
        """Those choices that wait for this leg and for no other."""
        return [choice for choice in self.unfinished(part) if choice.rival is None]


def _ended(part: Part, said: ChunkChoice) -> bool:
    """Whether all tokens were there, and only the end was missing."""
    return part.replay is not None and said.finish_reason not in (None, "abort")


def understood(part: Part, raw: bytes) -> Chunk | None:
    """Read an event; one that is not vLLM's, or of a choice that was not asked for, ends the leg, and is None."""
    chunk = read(raw)
    if chunk is None:
        part.lose("the server sent what is no event of vLLM's")
    elif chunk.choices and (len(chunk.choices) != 1 or not 0 <= chunk.choices[0].index < len(part.choices)):
        part.lose("the server sent a choice that was not asked for")
        return None
    return chunk
