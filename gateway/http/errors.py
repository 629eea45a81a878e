"""Refusals on the wire: one table from reasons to statuses, in OpenAI's error shape."""

import math
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web

from gateway.stream.wire import encode
from guards.refusal import Reason, Refused

RETRY_AFTER_S_MAX = 60  # openai-node sleeps whatever it is told


class Wire(NamedTuple):
    status: int
    type: str
    retry: bool  # whether a client's own retry can help


TABLE: dict[Reason, Wire] = {
    Reason.INVALID: Wire(400, "invalid_request_error", False),
    Reason.TOO_LARGE: Wire(413, "invalid_request_error", False),
    Reason.UNAUTHORIZED: Wire(401, "authentication_error", False),
    Reason.MODEL_UNKNOWN: Wire(404, "invalid_request_error", False),
    Reason.NOT_FOUND: Wire(404, "invalid_request_error", False),
    Reason.CONTEXT: Wire(400, "invalid_request_error", False),
    Reason.BUDGET: Wire(402, "insufficient_quota", False),
    Reason.HELD: Wire(429, "rate_limit_error", True),
    Reason.RATE: Wire(429, "rate_limit_error", True),
    Reason.BREAKER: Wire(429, "rate_limit_error", True),
    Reason.UNBOUNDED: Wire(400, "invalid_request_error", False),
    Reason.UNPRICED: Wire(400, "invalid_request_error", False),
    Reason.OVERLOADED: Wire(503, "server_error", True),
    Reason.LATE: Wire(503, "server_error", True),
    Reason.NO_REPLICA: Wire(503, "server_error", True),
    Reason.FIRST_TOKEN: Wire(504, "server_error", True),
    Reason.TIMEOUT: Wire(504, "server_error", False),  # it would take as long again
    Reason.SESSION: Wire(410, "invalid_request_error", False),
    Reason.UPSTREAM: Wire(502, "server_error", True),
    Reason.BOOKS: Wire(503, "server_error", True),
    Reason.FAULT: Wire(500, "server_error", False),
}


def error_response(refused: Refused, budget_status: int = 402) -> web.Response:
    """Word a refusal. A 4xx of the server's keeps its status: it was the request's fault."""
    status, body, headers = _worded(refused, budget_status)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def error_event(refused: Refused) -> bytes:
    """The same as the last event of a stream whose status was sent already. No [DONE] follows: see `Wording.error`."""
    return b"data: " + _worded(refused)[1] + b"\n\n"


def error_bytes(refused: Refused, request_id: str) -> bytes:
    """The same as a whole HTTP message, for a connection on which there was no request that aiohttp could answer."""
    status, body, headers = _worded(refused)
    headers |= {"x-request-id": request_id, "content-type": "application/json; charset=utf-8", "connection": "close"}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body


def _worded(refused: Refused, budget_status: int = 402) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a refusal."""
    wire = TABLE[refused.reason]
    status = budget_status if refused.reason is Reason.BUDGET else refused.status or wire.status
    at_fault = status < 500 and refused.reason is Reason.UPSTREAM
    body = {
        "message": refused.detail,
        "type": "invalid_request_error" if at_fault else wire.type,
        "param": refused.param,
        "code": "invalid_request" if at_fault else refused.reason.value,
    }
    headers = dict(refused.headers)
    if not wire.retry or at_fault:
        headers["x-should-retry"] = "false"
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(min(RETRY_AFTER_S_MAX, max(1, math.ceil(refused.retry_after_s))))
    return status, encode({"error": body}), headers
