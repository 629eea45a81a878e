"""How one replica's streams are doing, as their legs feel it."""

from collections.abc import Callable

from guards.rhythm import Rhythm

FIRST_UNKNOWN_S = 5.0  # before much is known of a replica: a long prompt is computed for seconds
FIRST_LEAST_S = 1.0
BETWEEN_LEAST_S = 0.25
BETWEEN_UNKNOWN_S = 1.0  # above the 0.7 s that healthy servers on a starved machine were seen to pause
BETWEEN_MOST_S = 0.5  # a second leg takes a while as well, and the client is to see its next token within 2 s
GAPS_MAX = 32  # of one leg; they are learnt whenever patience is asked for, a few times a second
SIZES_MAX = 16  # classes of request size, each four times the one before


class Pulse:
    """The rhythm of one replica, and how many of its streams are silent longer than that explains.

    tokens: reads that brought tokens, ever; while it stands still, none has come.
    streams: legs that are waiting for tokens now.
    silent: those of them that have been waiting for too long.
    silences: how many silences there were, ever, those of legs that have ended included.
    gaps, gaps_s: how many gaps between tokens were learnt, ever, and their sum.
    least_s: patience between tokens, in seconds, however fast the server.
    """

    def __init__(self, least_s: float = BETWEEN_LEAST_S) -> None:
        unknown_s = max(least_s, BETWEEN_UNKNOWN_S)
        self.between = Rhythm(unknown_s=unknown_s, least_s=least_s, most_s=max(least_s, BETWEEN_MOST_S))
        self._first: dict[int, Rhythm] = {}
        self.tokens = self.streams = self.silent = self.silences = self.gaps = 0
        self.gaps_s = 0.0

    @property
    def doubtful(self) -> bool:
        """Whether it looks as if nothing is computed there, at least for half of its streams."""
        return self.silent > 0 and self.silent * 2 >= self.streams

    def first(self, request_bytes: int) -> Rhythm:
        """The rhythm of first tokens, for requests of about that size: most of the wait is for the prompt."""
        size = min(request_bytes.bit_length() // 2, SIZES_MAX - 1)
        if size not in self._first:
            least_s = max(FIRST_LEAST_S, self.between.patience_s)
            self._first[size] = Rhythm(unknown_s=max(least_s, FIRST_UNKNOWN_S), least_s=least_s)
        return self._first[size]


class Watch:
    """One leg's share in its replica's pulse.

    on_silence: called once for each silence that lasts longer than it should.
    on_first: called when its first tokens have come.
    """

    __slots__ = ("_gaps", "_on_first", "_on_silence", "_pulse", "_rhythm", "begun", "silent")

    def __init__(
        self,
        pulse: Pulse,
        request_bytes: int,
        on_silence: Callable[[], None],
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self._pulse, self._on_silence, self._on_first = pulse, on_silence, on_first
        self._rhythm = pulse.first(request_bytes)
        self._gaps: list[float] = []  # that the rhythm does not know yet: many at once are learnt at less cost
        self.begun = self.silent = False
        pulse.streams += 1

    @property
    def patience_s(self) -> float:
        """How long it may be silent now, before that is suspicious."""
        if self._gaps:
            self._learn()
        return self._rhythm.patience_s

    def token(self, after_s: float) -> None:
        """Tokens have come, so long after those before, or after the leg began."""
        if self.begun:
            self._gaps.append(after_s)
            if len(self._gaps) >= GAPS_MAX:
                self._learn()
        else:
            self._rhythm.note((after_s,))
            self.begun, self._rhythm = True, self._pulse.between
            if self._on_first is not None:
                self._on_first()
        self._pulse.tokens += 1
        if self.silent:
            self._heard()

    def silence(self) -> None:
        """It has been silent for longer than it may."""
        if not self.silent:
            self.silent = True
            self._pulse.silent += 1
            self._pulse.silences += 1
            self._on_silence()

    def over(self) -> None:
        """The leg has ended."""
        if self.silent:
            self._heard()
        self._learn()
        self._pulse.streams -= 1

    def _learn(self) -> None:
        self._rhythm.note(self._gaps)
        self._pulse.gaps += len(self._gaps)
        self._pulse.gaps_s += sum(self._gaps)
        self._gaps.clear()

    def _heard(self) -> None:
        self.silent = False
        self._pulse.silent -= 1
