"""When the tokens of one stream came: gaps between them, pauses around a failover."""

from array import array
from collections.abc import Callable, Iterable

GAPS_BATCH = 32  # gaps that are kept before they are handed on


class Pace:
    """Times in seconds, by `clock`.

    on_gaps: is handed the gaps between events that brought tokens, in batches.
    first_token_at: None before the first token.
    pauses: for each choice that went on after a loss, the gap around it.
    """

    __slots__ = ("_clock", "_gaps", "_last_at", "_lost", "_on_gaps", "first_token_at", "pauses")

    def __init__(self, clock: Callable[[], float], on_gaps: Callable[[list[float]], None]) -> None:
        self._clock, self._on_gaps = clock, on_gaps
        self.first_token_at: float | None = None
        self.pauses: list[float] = []
        self._last_at: dict[int, float] = {}  # per choice
        self._gaps = array("d")
        self._lost: frozenset[int] = frozenset()

    def token(self, choice: int) -> None:
        """Tokens of a choice have come."""
        now, times = self._clock(), self._last_at
        last = times.get(choice)
        times[choice] = now
        if last is None:
            if self.first_token_at is None:
                self.first_token_at = now
            return
        self._gaps.append(now - last)
        if self._lost and choice in self._lost:
            self._lost -= {choice}
            self.pauses.append(now - last)
        if len(self._gaps) >= GAPS_BATCH:
            self.flush()

    def lost(self, choices: Iterable[int]) -> None:
        """Their leg was lost: the next gap of each is a pause."""
        self._lost |= frozenset(choices)

    def flush(self) -> None:
        """Hand on the gaps that are kept."""
        if self._gaps:
            gaps = self._gaps.tolist()
            del self._gaps[:]
            self._on_gaps(gaps)

    def close(self) -> None:
        """Hand on what is left, and know nobody any more."""
        self.flush()
        self._on_gaps = _nobody


def _nobody(gaps: list[float]) -> None:
    """Whom the gaps of a stream that is over are handed to."""
