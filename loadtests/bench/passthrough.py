"""The least an aiohttp gateway can be: bytes in, bytes out.

    python -m loadtests.bench.passthrough PORT UPSTREAM [barest] [twice]

No keys, no budget, no limits, no failover, no metrics, no journal: what there is to compare with, not to use. An
application with a route, and a time limit for reads, without which a hung server would keep a client for good; the
barest has neither. Twice: two processes, which share the port.
"""

import asyncio
import os
import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

READ_S = 600.0


async def main(port: int, upstream: str, *, barest: bool) -> None:
    """Serve until killed."""
    connector, timeout = TCPConnector(limit=0), ClientTimeout(total=None, sock_read=None if barest else READ_S)
    session = ClientSession(upstream, connector=connector, timeout=timeout, cookie_jar=DummyCookieJar())

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        headers = {"content-type": "application/json"}
        async with session.request(request.method, request.path, data=await request.read(), headers=headers) as answer:
            if answer.content_type != "text/event-stream":
                body = await answer.read()
                return web.Response(status=answer.status, body=body, content_type=answer.content_type)
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    runner: web.BaseRunner[web.Request] | web.BaseRunner[web.BaseRequest]
    if barest:
        runner = web.ServerRunner(web.Server(handle, access_log=None))
    else:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=16_384, reuse_port=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    if "twice" in sys.argv[3:]:
        os.fork()
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], barest="barest" in sys.argv[3:]))
