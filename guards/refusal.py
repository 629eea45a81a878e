"""Why a request is refused and how one ends: closed sets, because they label metrics."""

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a request was refused before its first byte. A metric label: keep the set small."""

    INVALID = "invalid_request"
    TOO_LARGE = "request_too_large"
    UNAUTHORIZED = "invalid_api_key"
    MODEL_UNKNOWN = "model_not_found"
    NOT_FOUND = "not_found"
    CONTEXT = "context_length_exceeded"
    BUDGET = "budget_exceeded"
    HELD = "budget_held"
    RATE = "rate_limit_exceeded"
    BREAKER = "breaker_open"
    UNBOUNDED = "unbounded_cost"
    UNPRICED = "model_without_price"
    OVERLOADED = "overloaded"
    LATE = "deadline_unreachable"
    NO_REPLICA = "no_replica"
    FIRST_TOKEN = "first_token_timeout"
    TIMEOUT = "timeout"
    SESSION = "session_timeout"
    UPSTREAM = "upstream_error"
    BOOKS = "books_unavailable"
    FAULT = "internal_error"


class Refused(Exception):
    """A request that is refused for a stated reason; an expected event, never a bug.

    reason: the closed set above, for metrics and the status code.
    detail: for humans, and for the client; never a secret nor an address. For `Reason.UPSTREAM` these are
        the server's words, which may quote the request: they are not for logs.
    param: the request field at fault, where there is one.
    retry_after_s: when another try may succeed, in seconds; None where it may not.
    status: a status of its own, such as the server's; None for the one that goes with the reason.
    headers: what the client is told beside it, by name.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s
        self.status = status
        self.headers = headers or {}


class Ending(StrEnum):
    """How a request ended, whatever the end. A metric label and a journal fact.

    FINISHED        the engine said so: stop, length
    BUDGET          the key's budget ended in mid-stream
    BOOKS           the ledger could not be written in mid-stream
    CLIENT_LEFT     the client hung up
    STOPPED         the gateway was told to stop, and its time for draining was over
    UPSTREAM_LOST   every leg that was allowed was lost
    UNCONTINUABLE   a leg was lost, and a feature of the request cannot go on exactly elsewhere
    TIMEOUT         the whole request took longer than it may
    SESSION         all requests of its session together did
    SILENT          no token came for longer than may lie between two, from any server that was allowed
    REVOKED         its key was revoked in mid-stream
    BREAKER         a breaker on cost opened in mid-stream
    SHORTENED       it was let in only with a short answer, and has had all of that
    REFUSED         before the first byte
    FAULT           a bug of ours; the client was told that something broke
    """

    FINISHED = "finished"
    BUDGET = "budget_exceeded"
    BOOKS = "books_unavailable"
    CLIENT_LEFT = "client_left"
    STOPPED = "stopped"
    UPSTREAM_LOST = "upstream_lost"
    UNCONTINUABLE = "uncontinuable"
    TIMEOUT = "timeout"
    SESSION = "session_timeout"
    SILENT = "between_tokens_timeout"
    REVOKED = "key_revoked"
    BREAKER = "breaker_open"
    SHORTENED = "shortened"
    REFUSED = "refused"
    FAULT = "fault"


CUTS = (Ending.BUDGET, Ending.BREAKER, Ending.SHORTENED)  # ends of an answer that nothing broke: its finish says why
