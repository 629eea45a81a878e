"""Refusals that servers cause: in their own words, or because there was none.

What is between us and vLLM may answer for it: proxies do, with pages. Their words are nobody's reason.
"""

import re

import msgspec

from gateway.stream.leg_end import LegEnd
from gateway.stream.wire import Chunk, UpstreamError
from guards.refusal import Ending, Reason, Refused

RETRY_AFTER_S = 1.0  # where no server is up: about one round of probes
BREAKER_RETRY_S = 60.0  # the least that a breaker is open for, and the most that a client is told
WORDS_MAX = 8192  # characters of a server's reason that a client is told
PAGE = re.compile(r"\s*<(?:!doctype|\?xml|html|head|body|center|title|h[1-6])\b", re.IGNORECASE)


def refusal(end: LegEnd) -> Refused:
    """Turn a server's 4xx into the refusal that the client gets: vLLM's own words, in OpenAI's shape."""
    try:
        error = msgspec.json.decode(end.body, type=Chunk).error or UpstreamError()
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = UpstreamError()
    return refused(error, end.status)


def refused(error: UpstreamError, status: int) -> Refused:
    """The same where the words are read already."""
    message, param = error.message[:WORDS_MAX], error.param and error.param[:WORDS_MAX]
    if not message or PAGE.match(message):
        message = "The server refused this request."
    return Refused(Reason.UPSTREAM, message, param=param, status=status)


def unanswered(why: str, *, late: bool = False, legs_left: int = 0) -> Refused:
    """The refusal for a request that no server answered. why: what the last one did. late: it was a time limit.

    legs_left: it could have been asked again, but all requests together are asked again too often.
    """
    detail = f"No server could answer this request: {why}."
    if legs_left > 0:
        detail = f"{detail[:-1]}; as many requests as may are being asked again elsewhere already."
    reason = Reason.FIRST_TOKEN if late else Reason.UPSTREAM
    return Refused(reason, detail, retry_after_s=RETRY_AFTER_S if legs_left > 0 else None)


def given_up(ending: Ending, detail: str) -> Refused:
    """The refusal for a request that ended by us while nothing was delivered, so that it still has a status."""
    if ending is Ending.BOOKS:
        return Refused(Reason.BOOKS, detail, retry_after_s=RETRY_AFTER_S)
    if ending is Ending.STOPPED:
        return Refused(Reason.OVERLOADED, detail, retry_after_s=RETRY_AFTER_S)
    if ending is Ending.REVOKED:
        return Refused(Reason.UNAUTHORIZED, detail)
    if ending is Ending.BREAKER:
        return Refused(Reason.BREAKER, detail, retry_after_s=BREAKER_RETRY_S)
    if ending in (Ending.TIMEOUT, Ending.SESSION):
        return Refused(Reason(ending.value), detail)
    return Refused(Reason.NO_REPLICA, detail, retry_after_s=RETRY_AFTER_S)
