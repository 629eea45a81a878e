"""A stream that begins anew on another server, since that takes the client's tokens for its own output.

Of what it brings the client has the beginning. That is looked at and dropped, and the rest is passed on in the server's
own words: they come from the grammar, the noise and the parsers that were lost, as those were.
"""

import re
from binascii import crc32
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.stream.call import Call
from gateway.stream.choice import Choice
from gateway.stream.continuation import HARMLESS, greedy
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.part import Part
from gateway.stream.sse import DATA, DONE
from gateway.stream.wire import ChunkChoice, read
from gateway.stream.wording import Wording
from guards.continuing import Continues

if TYPE_CHECKING:
    from gateway.stream.telling import Telling

HEAD = re.compile(rb'data: \{"id":"[^"\\]*","object":"[^"\\]*","created":\d+,"model":"[^"\\]*"')
FINGERPRINT = b'"system_fingerprint":"'
UNTRIED = ("best_of", "use_beam_search")  # how they go on was never seen
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
NO_EVENT = "the server sent what is no event of vLLM's"
OTHER_IDS = "the server replayed other tokens than the client has"
OTHER_TEXT = "the server made another text of the tokens that the client has"
OTHER_PROMPT = "the server made another prompt of the request"


def obstacle(call: Call, continues: Continues) -> str | None:
    """Name what of a request such a replica cannot continue by replay; None if it can all."""
    body = call.body
    if call.has_media:
        return "media in messages"
    for name in (*UNTRIED, *sorted(continues.refused)):
        value = body.get(name)
        if value is not None and value is not False and value not in ("", [], {}, *HARMLESS.get(name, ())):
            return name
    return "seed" if body.get("seed") is not None and not greedy(body) and not continues.seeds else None


class Stamp:
    """Makes events of another server look like those that the client had first: with its id, time and model."""

    __slots__ = ("_fingerprint", "_head", "_ours", "_theirs")

    def __init__(self, wording: Wording) -> None:
        self._head = wording.envelope()
        self._fingerprint = wording.head.system_fingerprint if wording.head is not None else None
        self._ours = DATA + msgspec.json.encode(self._head)[:-1]
        self._theirs: bytes | None = None

    def on(self, raw: bytes) -> bytes:
        """Stamp an event; what is no chunk stays as it is."""
        theirs = self._theirs
        if theirs is None:
            found = HEAD.match(raw)
            theirs = self._theirs = found[0] if found is not None else None
        odd = self._fingerprint is not None and FINGERPRINT in raw
        if theirs is not None and raw.startswith(theirs) and not odd:
            return self._ours + raw[len(theirs) :]
        return self._anew(raw)

    def into(self, body: dict[str, Any]) -> bytes:
        """Write a decoded event."""
        body |= self._head
        if self._fingerprint is not None and "system_fingerprint" in body:
            body["system_fingerprint"] = self._fingerprint
        return DATA + msgspec.json.encode(body)

    def _anew(self, raw: bytes) -> bytes:
        if raw == DONE:
            return raw
        try:
            body = msgspec.json.decode(raw[len(DATA) :])
        except UNREADABLE:
            return raw
        return self.into(body) if isinstance(body, dict) and "choices" in body else raw


class Seen:
    """How far the replay of one choice has come: ids, and text as `Choice` counts it.

    over: what follows is new to the client.
    """

    __slots__ = ("apart", "apart_crc", "characters", "choice", "crc", "over", "tokens")

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.tokens = self.characters = self.crc = self.apart = self.apart_crc = 0
        self.over = not choice.role_sent and not choice.ids

    def take(self, text: str, apart: str) -> None:
        """Take in text of an event, content and the rest."""
        self.characters += len(text)
        self.crc = crc32(text.encode(), self.crc)
        if apart:
            self.apart += len(apart)
            self.apart_crc = crc32(apart.encode(), self.apart_crc)

    @property
    def level(self) -> bool:
        """Whether its text so far is what the client has."""
        mine, its = (self.characters, self.crc), (self.choice.characters, self.choice.crc)
        return mine == its and (self.apart, self.apart_crc) == (self.choice.apart, self.choice.apart_crc)


class Replay:
    """Takes in the events of one leg that begins with what the client has, and hands on those that follow.

    over: for all choices. prompts: ids of the client's, by number.
    """

    __slots__ = ("_onward", "_part", "_prompts", "_seen", "_stamp", "over")

    def __init__(
        self, part: Part, choices: Sequence[Choice], prompts: Sequence[Sequence[int] | None], wording: Wording
    ) -> None:
        self._part, self._prompts = part, prompts
        self._onward: Callable[[list[bytes]], None] = part.events
        self._stamp = Stamp(wording)
        self._seen = [Seen(choice) for choice in choices]
        self.over = False

    def events(self, raws: list[bytes]) -> None:
        """Take in events, as `Part.events` does."""
        if not self.over:
            kept = [self._fresh(raw) for raw in raws]
            raws = [raw for raw in kept if raw is not None]
            self.over = all(seen.over for seen in self._seen if seen.choice.finish_reason is None)
        else:
            raws = [self._stamp.on(raw) for raw in raws]
        if raws:
            self._onward(raws)

    def failed(self, end: LegEnd) -> bool:
        """Whether its server was there, and did not replay what it was asked to."""
        return not self.over and (self._part.loss is not None or (end.erred and end.cause is not Cause.CLOSED))

    def _fresh(self, raw: bytes) -> bytes | None:
        """What of an event the client does not have; None where it has all of it."""
        chunk = read(raw) if raw != DONE else None
        if chunk is None or len(chunk.choices) != 1 or not 0 <= chunk.choices[0].index < len(self._seen):
            return self._stamp.on(raw)  # for whoever takes it in to judge
        said = chunk.choices[0]
        seen = self._seen[said.index]
        if seen.choice.finish_reason is not None or self._part.loss is not None:
            return None
        prompt = chunk.prompt_token_ids or said.prompt_token_ids
        known = self._prompts[seen.choice.prompt]
        if prompt is not None and known is not None and prompt != list(known):
            return self._distrust(OTHER_PROMPT)
        if not seen.over:
            return self._past(raw, seen, said)
        return self._stamp.on(raw)

    def _past(self, raw: bytes, seen: Seen, said: ChunkChoice) -> bytes | None:
        """Take in an event that begins with what the client has. There are three cases.

        1. It brings no ids: the role, or the echo of a message.
        2. It brings ids that the client has, and nothing else: it is dropped.
        3. It brings also a finish, or further ids.
        """
        choice, ids = seen.choice, said.token_ids or []
        text, apart = said.content, said.delta.apart if said.delta is not None else ""
        missing = len(choice.ids) - seen.tokens
        again = min(len(ids), missing)
        if choice.ids[seen.tokens : seen.tokens + again].tolist() != ids[:again]:
            return self._distrust(OTHER_IDS)
        if not missing and seen.level and (ids or said.finish_reason is not None or text):
            seen.over = True  # nothing was delivered of it but a role, or an echo
            return self._stamp.on(raw)
        if len(ids) > again or said.finish_reason is not None:
            return self._rest(raw, seen, said, again)
        seen.tokens += again
        seen.take(text, apart)
        if again and seen.tokens == len(choice.ids):
            seen.over = seen.level
            return None if seen.over else self._distrust(OTHER_TEXT)
        return None

    def _rest(self, raw: bytes, seen: Seen, said: ChunkChoice, again: int) -> bytes | None:
        """Take from an event what the client has: so many of its ids, and their text."""
        choice, text = seen.choice, said.content
        apart = said.delta.apart if said.delta is not None else ""
        if seen.tokens + again < len(choice.ids):
            return self._distrust(OTHER_IDS)  # it has ended sooner
        had = choice.characters - seen.characters
        old_apart = apart[: choice.apart - seen.apart]
        seen.take(text[:had] if had > 0 else "", old_apart)
        if not seen.level or 0 < len(old_apart) < len(apart):
            return self._distrust(OTHER_TEXT)
        try:
            body = msgspec.json.decode(raw[len(DATA) :])
        except UNREADABLE:  # in what was passed over at first: numbers beyond all bounds
            return self._distrust(NO_EVENT)
        seen.over = True
        left = body["choices"][0]
        left["token_ids"] = (said.token_ids or [])[again:]
        _shorten_text(left, text[had:], keep_apart=not old_apart)
        _shorten_logprobs(left, again)
        return self._stamp.into(body)

    def _distrust(self, why: str) -> bytes | None:
        self._part.lose(why)
        return None


def replayed(part: Part, telling: "Telling") -> None:
    """Have the events of a part, which begin with what the client has, go through their replay."""
    choices = [telling.choices[number] for number in part.choices]
    part.replay = Replay(part, choices, telling.prompts, telling.wording)
    part.events = part.replay.events


def _shorten_text(choice: dict[str, Any], content: str, *, keep_apart: bool) -> None:
    if choice.get("delta") is None:
        choice["text"] = content
    else:
        apart = {name: value for name, value in choice["delta"].items() if name not in ("role", "content")}
        choice["delta"] = (apart if keep_apart else {}) | ({"content": content} if content else {})


def _shorten_logprobs(choice: dict[str, Any], tokens: int) -> None:
    """Those of replayed tokens stand for none."""
    said = choice.get("logprobs")
    if not isinstance(said, dict):
        return
    left = {name: value[tokens:] if isinstance(value, list) else value for name, value in said.items()}
    choice["logprobs"] = left if any(left.values()) else None
