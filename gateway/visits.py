"""The replicas that one request is sent to, and what its ends there say of them."""

from gateway.fleet.replicas import Fleet
from gateway.stream.leg_end import Cause, LegEnd
from guards.blame import Blame
from guards.breaker import Entry, Outcome

# A status of 400 to 499; a verdict that others have spoken; and what an operator wanted.
NOTHING_SHOWN = (Cause.REFUSED, Cause.ABANDONED, Cause.MOVED)


class Visit:
    """A replica that a request was sent to, by one leg or by one for each of its choices: a call, for its breaker."""

    __slots__ = ("entry", "legs", "name")

    def __init__(self, name: str, entry: Entry) -> None:
        self.name, self.entry = name, entry
        self.legs = 0


class Visits:
    """Those of one request. Each is ended once for its breaker: at its end, or when it is clear whose fault it was."""

    __slots__ = ("_blame", "_fleet", "_model", "_open")

    def __init__(self, fleet: Fleet, model: str) -> None:
        self._fleet, self._model = fleet, model
        self._blame: Blame[Entry] = Blame()
        self._open: dict[Visit, None] = {}

    def begin(self, name: str, entry: Entry | None = None) -> Visit:
        """Send the request to a replica. entry: of its breaker, where that counts it already."""
        visit = Visit(name, self._fleet.admit(name, self._model) if entry is None else entry)
        self._open[visit] = None
        return visit

    def progressed(self) -> None:
        """A replica has brought a token: whatever others failed before, it did not."""
        for entry in self._blame.answered():
            entry.end(Outcome.FAILED)

    def ended(self, visit: Visit, end: LegEnd, lost: bool) -> None:
        """One leg of a visit has ended. lost: it was left unfinished by the server's fault. There are four cases.

        1. The server could not be reached: that is no request's fault.
        2. Lost otherwise: it may be the request's.
        3. Answered to the end, and so by all other legs of the visit.
        4. Closed or moved by us, or refused: it shows nothing.
        """
        visit.legs -= 1
        if end.cause is Cause.UNREACHED:
            self._end(visit, Outcome.FAILED)
        elif lost and end.cause not in NOTHING_SHOWN:
            if visit in self._open:
                del self._open[visit]
                self._blame.failed(visit.name, visit.entry)
        elif end.cause is Cause.DONE:
            self.progressed()
            if visit.legs == 0:
                self._end(visit, Outcome.ANSWERED)
        elif visit.legs == 0:
            self._end(visit, Outcome.NEUTRAL)

    def close(self, *, left: bool) -> None:
        """The request is over. left: it did not come to an end of its own, as when its client hung up."""
        if self._blame.pending:  # which is rare
            self._judge(left)
        for visit in list(self._open):
            self._end(visit, Outcome.NEUTRAL)

    def _judge(self, left: bool) -> None:
        failed, unknown = self._blame.over(unsure=left or self._fleet.alone(self._model))
        for entry in failed:
            entry.end(Outcome.FAILED)
        for entry in unknown:
            entry.end(Outcome.NEUTRAL)

    def _end(self, visit: Visit, outcome: Outcome) -> None:
        if self._open.pop(visit, visit) is None:
            visit.entry.end(outcome)
