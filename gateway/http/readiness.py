"""Whether the gateway can serve, for load balancers; asked on the public port and on the admin port."""

import msgspec
from aiohttp import web


def readiness(why_not: list[str]) -> web.Response:
    """200 where nothing keeps it from serving, else 503 with the reasons."""
    body = msgspec.json.encode({"ready": not why_not, "why": why_not})
    return web.Response(body=body, status=503 if why_not else 200, content_type="application/json")
