"""One leg's part of a stream."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gateway.stream.call import Call
from gateway.stream.pace import Pace
from gateway.stream.seams import Ask, LegControl
from gateway.stream.template import Template
from guards.continuing import Continues
from guards.refusal import Ending

if TYPE_CHECKING:
    from gateway.stream.replay import Replay

EARLY_EVENTS_MAX = 64  # of a leg that races and has not brought a token yet: role, prompt ids


class Stream(Protocol):
    """What parts are of, as far as they and who moves them are concerned: see `Relay`."""

    call: Call
    ending: Ending | None
    pace: Pace
    so_far: Callable[[], "list[array[int]]"]  # ids of prompt and answer, for each choice

    @property
    def open(self) -> bool: ...

    @property
    def completion_tokens(self) -> int: ...

    def events(self, part: "Part", raws: list[bytes]) -> None:
        """Take in events of one leg."""

    async def stays(self, known: Sequence[Continues | None]) -> str | None:
        """Say why it can only end where it is; None where it can go on elsewhere. Nothing of it is changed.

        known: what those can continue by replay that it could go to.
        """


class Part:
    """What one leg delivers to a relay.

    events: takes in complete events of the leg, in order: those of its stream.
    choices: the client's numbers of its choices.
    again, words: see Ask.
    on_win: called when it brings the next token before the leg that it races; None for a leg that races nobody.
    early: its events so far, while it races and has brought no token; None when its events count.
    waiting: events that a lease must cover first; None while nothing waits.
    behind: the decoder of its text is.
    heard: how many events with tokens it brought.
    loss: why what it sends is not trusted any more.
    replay: where its stream begins with what the client has.
    stream: what it is of; None once it is retired.
    bond: the fingerprints that what it brings is bound to; none where it is not, or nobody knows.
    template: of its usual chunks, once one was taken in, where it brings one choice: the prompt is charged by then.
    """

    __slots__ = (
        "again", "behind", "bond", "choices", "early", "events", "heard", "leg", "loss", "on_win", "replay", "stream",
        "template", "waiting", "words",
    )  # fmt: skip

    def __init__(self, stream: "Stream", ask: Ask, on_win: Callable[[], None] | None = None) -> None:
        self.events: Callable[[list[bytes]], None] = partial(stream.events, self)
        self.stream: Stream | None = stream
        self.choices, self.again, self.words, self.on_win = ask.choices, ask.again, ask.words, on_win
        self.leg: LegControl | None = None
        self.bond: frozenset[str] = frozenset()
        self.early: list[bytes] | None = None if on_win is None else []
        self.waiting: list[bytes] | None = None
        self.behind = False
        self.heard = 0
        self.loss: str | None = None
        self.replay: Replay | None = None
        self.template: Template | None = None

    @property
    def racing(self) -> bool:
        """Whether it was asked for tokens that a silent leg may still bring."""
        return self.early is not None

    @property
    def held(self) -> bool:
        """Whether its leg waits for a lease or for text."""
        return self.waiting is not None or self.behind

    @property
    def receiver(self) -> "Part":
        """Who takes in the leg's events."""
        return self

    def retire(self) -> None:
        """Let go of what holds it: its leg has ended, and cycles wait for the collector with all that hangs on them."""
        self.leg = self.stream = self.replay = None
        self.events = _nothing

    def lose(self, detail: str) -> None:
        """Give the leg up: what it sends is not to be trusted."""
        self.loss = detail
        self.close()

    def close(self) -> None:
        if self.leg is not None:
            self.leg.close()


def close_all(parts: Iterable[Part]) -> None:
    """Close the legs of these."""
    for part in parts:
        part.close()


def _nothing(raws: list[bytes]) -> None:
    """What a leg that has ended brings."""
