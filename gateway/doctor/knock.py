"""One question to a server on a connection of its own, for what its head tells: how long it takes, what time it has.

The gateway's own client (stream/upstream.py) keeps neither, and keeps connections.
"""

import asyncio
import re
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from gateway.stream.leg import Target

HEAD_BYTES_MAX = 65_536
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_DATE = re.compile(rb"\r\ndate:[ \t]*([^\r\n]{1,64})\r\n", re.IGNORECASE)


class Knock(NamedTuple):
    """What came of it. status: 0 where nothing answered in HTTP. Times in seconds; None where it did not come so far.

    date_s: by the server's clock, in Unix seconds, whole ones; at_s: by ours, when it was half way.
    """

    status: int = 0
    connect_s: float | None = None
    answer_s: float | None = None
    date_s: float | None = None
    at_s: float = 0.0


async def knock(target: Target, path: str, wait_s: float, *, keyed: bool) -> Knock:
    """Ask for a path, with the server's key or without one; never raises for what a server does."""
    started_s = time.monotonic()
    connect_s: float | None = None
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(wait_s):
            tls = ssl.create_default_context() if target.tls else None
            reader, writer = await asyncio.open_connection(target.host, target.port, ssl=tls, limit=HEAD_BYTES_MAX)
            connect_s = time.monotonic() - started_s
            asked_s, asked_at_s = time.monotonic(), time.time()
            writer.write(_request(target, path, keyed))
            head = await reader.readuntil(b"\r\n\r\n")
            answer_s = time.monotonic() - asked_s
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, UnicodeError):
        return Knock(connect_s=connect_s)
    finally:
        if writer is not None:
            writer.transport.abort()
    status = _STATUS.match(head)
    return Knock(int(status[1]) if status else 0, connect_s, answer_s, _date(head), asked_at_s + answer_s / 2)


def _request(target: Target, path: str, keyed: bool) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"host: {target.host}:{target.port}", "connection: close"]
    if keyed and target.key is not None:
        lines.append(f"authorization: Bearer {target.key}")  # printable ASCII: gateway/config.py sees to it
    return "\r\n".join([*lines, "", ""]).encode()


def _date(head: bytes) -> float | None:
    found = _DATE.search(head)
    try:
        date = parsedate_to_datetime(found[1].decode("ascii")) if found else None
    except (ValueError, UnicodeDecodeError):
        return None
    return None if date is None else date.replace(tzinfo=date.tzinfo or UTC).timestamp()
