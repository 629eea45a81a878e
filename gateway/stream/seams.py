"""What a relay touches: the client's sink, the budget's lease, the legs; and the terms it is given."""

from collections.abc import Callable
from functools import partial
from random import getrandbits
from typing import NamedTuple, Protocol

from gateway.stream.choice import Words
from gateway.stream.text import Decoder
from guards.budget import Meter
from guards.refusal import Ending


class Sink(Protocol):
    """The client's side. Writing never waits; a full sink pauses the leg instead."""

    started: bool
    told: tuple[tuple[str, str], ...]  # headers of the head that others know
    received_at: float  # when the request arrived, by the loop's clock, in seconds

    @property
    def gone(self) -> bool:
        """Whether the client hung up."""

    def from_replica(self, name: str, overhead_s: float) -> None:
        """Note which replica answers, and the gateway's own time before it was asked; the head tells both."""

    def write(self, data: bytes) -> bool:
        """Send bytes, the head first if it was not sent; False when the client must catch up first."""

    def on_room(self, then: Callable[[], None]) -> None:
        """Call `then` once, when a sink that was full can take more."""


class Lease(Protocol):
    """A request's hold on its budget, as far as a relay needs it.

    cached, reasoning: how much of the prompts was cached, and of the answer reasoning; to be told at the end. None:
        some of it was reasoning, and the server did not say how much.
    reasoning_is_dear: whether it costs more than the rest of an answer, so that it matters how much there was.
    failure: why no more could be asked for, where that was the books' fault and not the budget's end.
    """

    meter: Meter
    cached: int
    reasoning: int | None

    @property
    def reasoning_is_dear(self) -> bool: ...

    failure: BaseException | None

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
    """What one leg is asked for; `choices[i]` is the client's number of the leg's choice i.

    again: tokens that other servers have computed already, in prompts and answers.
    likely: tokens that it will take there, prompt and answers, about.
    words: what will word its choice, should it win a race; None where that is known already.
    replay: it begins with what its client has of these choices.
    """

    path: str
    body: bytes
    choices: tuple[int, ...]
    again: int = 0
    words: Words | None = None
    likely: int = 0
    replay: bool = False


class House(NamedTuple):
    """What was computed for a request that nobody is charged for, in tokens.

    recomputed: that servers computed again because it went on elsewhere. restored: that they had no need to, for these
        were in a cache of theirs, or in a page store. hedged: as recomputed, for races that the first leg won.
    """

    recomputed: int = 0
    restored: int = 0
    hedged: int = 0


class Terms(NamedTuple):
    """What was settled before the stream began.

    legs_max: how many servers are tried, one after the other.
    hedges_max: how many more may be asked beside one that is silent.
    max_tokens: per choice, as sent upstream; None where the model decides.
    capped: whether we, not the client, set max_tokens. cap: the end of an answer that is as long as that.
    decoder: makes the decoder of one choice; None where no text can be made after a loss.
    spells_special: that decoder cannot leave special tokens out.
    window: tells the model's length limit in tokens, prompt and answer together; None while no server told it.
    retry: takes one of the tries that all requests together have where servers answer with errors, if one is left.
    draw: a seed for an answer whose client gave none, below 2³¹.
    prompt_likely, answer_likely: tokens that all prompts and each choice will take, about.
    asked_likely: that each would have taken as it was asked for; 0 where that is the same.
    """

    legs_max: int
    max_tokens: int | None = None
    capped: bool = False
    decoder: Callable[[], Decoder] | None = None
    spells_special: bool = False
    window: Callable[[], int | None] = lambda: None
    hedges_max: int = 8
    prompt_likely: int = 0
    answer_likely: int = 0
    asked_likely: int = 0
    cap: Ending = Ending.BUDGET
    retry: Callable[[], bool] = lambda: True
    draw: Callable[[], int] = partial(getrandbits, 31)
