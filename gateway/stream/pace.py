"""When the tokens of one stream came: gaps between them, pauses around a failover."""

from collections.abc import Callable, Iterable

GAPS_BATCH = 64  # gaps that are kept before they are handed on


class Pace:
    """Times in seconds, by `clock`.

    on_gaps: is handed the gaps between events that brought tokens, in batches.
    first_token_at: None before the first token.
    pauses: for each choice that went on after a loss, the gap around it.
    """

    def __init__(self, clock: Callable[[], float], on_gaps: Callable[[list[float]], None]) -> None:
        self._clock, self._on_gaps = clock, on_gaps
        self.first_token_at: float | None = None
        self.pauses: list[float] = []
        self._last_at: dict[int, float] = {}  # per choice
        self._gaps: list[float] = []
        self._lost: set[int] = set()

    def token(self, choice: int) -> None:
        """Tokens of a choice have come."""
        now = self._clock()
        last = self._last_at.get(choice)
        self._last_at[choice] = now
        if self.first_token_at is None:
            self.first_token_at = now
        if last is None:
            return
        self._gaps.append(now - last)
        if choice in self._lost:
            self._lost.discard(choice)
            self.pauses.append(now - last)
        if len(self._gaps) >= GAPS_BATCH:
            self.flush()

    def lost(self, choices: Iterable[int]) -> None:
        """Their leg was lost: the next gap of each is a pause."""
        self._lost.update(choices)

    def flush(self) -> None:
        """Hand on the gaps that are kept."""
        if self._gaps:
            self._on_gaps(self._gaps)
            self._gaps = []

    def close(self) -> None:
        """Hand on what is left, and know nobody any more."""
        self.flush()
        self._on_gaps = _nobody


def _nobody(gaps: list[float]) -> None:
    """Whom the gaps of a stream that is over are handed to."""
