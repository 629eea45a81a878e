"""One key gone mad, in a process of its own: python -m tests.scenarios.runaway PORT KEY STREAMS BODY

Opens so many streams at once and reads each to its end; prints what came of them, as JSON. In the process of those who
measure, its reading would be measured too.
"""

import asyncio
import json
import re
import sys

STOP = re.compile(rb'"finish_reason":"(\w+)","stop_reason":"(\w+)"')
USAGE = re.compile(rb'"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')
REQUEST_ID = re.compile(rb"x-request-id: (\S+)", re.IGNORECASE)


async def stream(port: int, key: str, body: bytes) -> dict[str, object]:
    """One of them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
    )
    writer.write(head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    said = b""
    begun = await reader.read(4096)
    while more := await reader.read(1 << 16):
        said = said[-4096:] + more
    writer.close()
    stop, usage, name = STOP.search(said), USAGE.search(said), REQUEST_ID.search(begun)
    return {
        "status": int(begun[9:12]),
        "request_id": name[1].decode() if name else None,
        "stop": [one.decode() for one in stop.groups()] if stop else None,
        "usage": [int(one) for one in usage.groups()] if usage else None,
        "done": said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"),
    }


async def main(port: int, key: str, streams: int, body: bytes) -> None:
    """All of them."""
    print(json.dumps(await asyncio.gather(*(stream(port, key, body) for _ in range(streams)))))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()))
