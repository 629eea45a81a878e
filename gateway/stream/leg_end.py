"""How a leg ended."""

from enum import StrEnum
from typing import NamedTuple

# Statuses that are the request's own fault: another server would say the same. 401, 403, 404 and 429 are
# not among them: here they tell of an upstream key, a model that is not loaded, a server that is full.
REQUEST_AT_FAULT = frozenset((400, 405, 411, 413, 415, 422))


class Cause(StrEnum):
    """How a leg ended. A metric label."""

    DONE = "done"  # answered to the end: a stream, or a plain body
    CLOSED = "closed"  # by us
    REFUSED = "refused"  # an HTTP status of 400 to 499
    FAILED = "failed"  # an HTTP status of 500 or above, before the first byte
    UNREACHED = "unreached"  # no connection
    BROKEN = "broken"  # the connection ended in mid-answer
    PROTOCOL = "protocol"  # not HTTP, not SSE, or beyond a limit
    SILENT = "silent"  # no progress within a timeout
    ABANDONED = "abandoned"  # the replica was found dead, or hung, meanwhile
    OUTRUN = "outrun"  # silent, while another server brought the next token
    MOVED = "moved"  # by us, and on purpose: it goes on elsewhere, for its server is to be stopped


# The server died, hangs, was never there, or is to go. Every other end is an answer, though it may be none of use.
GONE = frozenset((Cause.UNREACHED, Cause.BROKEN, Cause.ABANDONED, Cause.OUTRUN, Cause.MOVED))


class LegEnd(NamedTuple):
    """The end of a leg. `body` is set for plain answers and for refusals; `detail` names no address.

    late: a token did not come in time.
    """

    cause: Cause
    detail: str = ""
    status: int = 0
    body: bytes = b""
    late: bool = False

    @property
    def reached(self) -> bool:
        """Whether a server was there at all."""
        return self.cause is not Cause.UNREACHED

    @property
    def silent(self) -> bool:
        """Whether it was there and did not answer in time."""
        return self.cause is Cause.SILENT

    @property
    def erred(self) -> bool:
        """Whether a server was there and did not do what it was asked for."""
        return self.cause not in GONE

    @property
    def planned(self) -> bool:
        """Whether nobody failed: it was moved."""
        return self.cause is Cause.MOVED

    @property
    def request_at_fault(self) -> bool:
        """Whether another server would refuse the request just so."""
        return self.status in REQUEST_AT_FAULT
