"""One stream that is moved by plan: pre-copy, cut, tail.

1. Pre-copy: while it goes on, its new server loads the pages of all that it has by now.
2. Cut: its legs are closed, as if their server had died.
3. Tail: the new server computes what came since the pre-copy, and the next token; that is all the client waits for.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.fleet.heirs import strangers
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Fleet
from gateway.stream.leg import Leg
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.part import Part, Stream
from gateway.warming import Outcome, Warmed, Warmer
from guards.refusal import CUTS, Ending

GOES_ON = (None, Ending.FINISHED, *CUTS)  # or came to the end that it would have had here, too
PRECOPY_S_MAX = 8.0
ROUNDS_MAX = 2  # of pre-copy: what came during a long first one is loaded by the second
AGAIN_S = 0.25  # a first one that took less needs no second


@dataclass(eq=False)
class Move:
    """A stream on its way. begun_s: by the gateway's clock. tokens: it had at the cut; None before that.

    to: where it should go; None where that is for routing to say. warmed: what was loaded there ahead.
    pauses_s: that its client has seen around it, once it has arrived.
    """

    stream: Stream
    begun_s: float
    to: str | None = None
    tokens: int | None = None
    warmed: list[Warmed] = field(default_factory=list)
    _pauses: int = 0

    @property
    def arrived(self) -> bool:
        """Whether it goes on, or has ended."""
        return not self.stream.open or (self.tokens is not None and self.stream.completion_tokens > self.tokens)

    @property
    def well(self) -> bool:
        """Whether it went on where it was sent, as it would have here."""
        return self.tokens is not None and self.stream.ending in GOES_ON

    @property
    def pauses_s(self) -> list[float]:
        return [] if self.tokens is None else self.stream.pace.pauses[self._pauses :]

    @property
    def recomputed(self) -> int:
        """Tokens that its new server had to compute, as far as is known: ahead, or after the cut."""
        loaded = [one for one in self.warmed if one.outcome is Outcome.LOADED]
        if not loaded:
            return sum(map(len, self.stream.so_far()))
        return sum(one.tokens - one.cached for one in loaded)

    async def precopy(self, warmer: Warmer, to: str) -> None:
        """Have the replica that it goes to load what it has; one that does not in time is gone to all the same."""
        self.to = self.stream.call.home = to
        with suppress(TimeoutError):
            async with asyncio.timeout(PRECOPY_S_MAX):
                for _ in range(ROUNDS_MAX):
                    loaded = [await warmer.warm(to, self.stream.call, ids) for ids in self.stream.so_far()]
                    self.warmed += loaded
                    self.stream.call.ahead = max(self.stream.call.ahead, sum(one.tokens for one in loaded))
                    took_s = sum(one.took_s for one in loaded)
                    if took_s < AGAIN_S or not self.stream.open:
                        break

    def cut(self, legs: Sequence[Leg], why: str) -> None:
        """Close its legs; it goes on elsewhere."""
        self.tokens, self._pauses = self.stream.completion_tokens, len(self.stream.pace.pauses)
        for leg in legs:
            leg.end(LegEnd(Cause.MOVED, why))


def found(legs: Sequence[Leg]) -> dict[Stream, list[Leg]]:
    """The streams that may be moved, with their legs; those that only race a leg elsewhere are given up."""
    streams: dict[Stream, list[Leg]] = {}
    for leg in legs:
        part = leg.receiver
        if not isinstance(part, Part) or part.stream is None:
            continue
        if part.racing:
            part.close()
        else:
            streams.setdefault(part.stream, []).append(leg)
    return streams


def bonds(legs: Sequence[Leg]) -> frozenset[frozenset[str]]:
    """What the legs of a stream are bound to."""
    return frozenset(leg.receiver.bond for leg in legs if isinstance(leg.receiver, Part))


def target(fleet: Fleet, replica: Replica, model: str) -> str | None:
    """Name a replica that can load a stream's pages, out of the store that its own has; None where there is none."""
    if not replica.stores or not replica.fingerprints:
        return None
    now_s = fleet.now_s()
    unlike = set(strangers(fleet.up(model), model, [replica.origin(model, now_s)], now_s))
    for one in fleet.up(model):
        if not one.stores or one.fingerprints != replica.fingerprints:
            unlike.add(one.name)
    return fleet.second(model, frozenset((replica.name, *unlike)))
