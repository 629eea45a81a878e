"""One leg's part of a stream."""

from collections.abc import Callable

from gateway.stream.seams import Ask, LegControl


class Part:
    """What one leg delivers to a relay.

    take: takes in complete events of the leg, in order.
    choices: the client's numbers of the leg's choices.
    waiting: events that a lease must cover first; None while nothing waits.
    behind: the decoder of its text is.
    loss: why what it sends is not trusted any more.
    """

    def __init__(self, take: Callable[["Part", list[bytes]], None], ask: Ask) -> None:
        self._take, self.choices = take, ask.choices
        self.leg: LegControl | None = None
        self.waiting: list[bytes] | None = None
        self.loss: str | None = None
        self.behind = False

    @property
    def held(self) -> bool:
        """Whether its leg waits for a lease or for text."""
        return self.waiting is not None or self.behind

    @property
    def receiver(self) -> "Part":
        """Who takes in the leg's events."""
        return self

    def events(self, raws: list[bytes]) -> None:
        """Take in complete events of the leg, in order."""
        self._take(self, raws)

    def lose(self, detail: str) -> None:
        """Give the leg up: what it sends is not to be trusted."""
        self.loss = detail
        self.close()

    def close(self) -> None:
        if self.leg is not None:
            self.leg.close()
