"""What is asked on the admin port: bodies and queries, of which nothing may be unknown."""

import asyncio
import re
from typing import TypeVar

import msgspec
from aiohttp import web

from guards.refusal import Reason, Refused

B = TypeVar("B", bound=msgspec.Struct)

BODY_BYTES_MAX = 65_536
BODY_S = 10.0
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_MISSING = re.compile(r"required field `([^`]*)`")
_AT = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`")


def query(request: web.BaseRequest, *known: str) -> dict[str, str]:
    """The query, of which nothing may be unknown: a typing slip must not be a default."""
    said = dict(request.query)
    for name in said:
        if name not in known:
            detail = f"There is no such parameter here; known: {', '.join(known) or 'none'}."
            raise Refused(Reason.INVALID, detail, param=name[:100])
    return said


async def body(request: web.BaseRequest, shape: type[B]) -> B:
    """Read a JSON body. Raises Refused, naming the field."""
    if request.content_type != "application/json":  # which a page cannot send elsewhere without being asked first
        raise Refused(Reason.INVALID, "Send content-type: application/json.", status=415)
    data = b""
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.content.iter_any():
                data += part
                if len(data) > BODY_BYTES_MAX:
                    raise Refused(Reason.TOO_LARGE, f"The body may have at most {BODY_BYTES_MAX} bytes.")
    except TimeoutError:
        raise Refused(Reason.INVALID, f"The body did not arrive within {BODY_S:g} s.", status=408) from None
    except web.RequestPayloadError:
        raise Refused(Reason.INVALID, "The body could not be read.") from None
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error)
        inner, at = _UNKNOWN.search(text) or _MISSING.search(text), _AT.search(text)
        param = ".".join(name for name in (at and at[1], inner and inner[1]) if name) or None
        raise Refused(Reason.INVALID, f"{_AT.sub('', text)}.", param=param and param[:100]) from None
