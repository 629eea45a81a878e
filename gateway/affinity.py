"""What a request should be near to: its session, or others that begin as it does, so that their caches serve it.

A hint and no promise: routing passes over a replica that has too much already.
"""

from array import array
from typing import Any
from zlib import crc32

from gateway.books.tenants import Tenant
from gateway.stream.call import Call, Endpoint

BYTES_PER_ID = 4
MESSAGES_MAX = 16  # looked at for the beginning of a chat


class Affinity:
    """Says what requests have in common, as a number. The same in every process, and after a restart.

    sessions: whether those of one session do. prefixes: whether those that begin alike do.
    prefix_bytes: how much of a beginning is looked at.
    """

    def __init__(self, *, sessions: bool = True, prefixes: bool = True, prefix_bytes: int = 2048) -> None:
        self._sessions, self._prefixes, self._prefix_bytes = sessions, prefixes, prefix_bytes

    def near(self, call: Call, tenant: Tenant, salt: str | None) -> int | None:
        """The number of a request; None where it has nothing in common with any.

        salt: as its org's prefixes have it in the servers' caches, so that orgs that share none do not meet.
        """
        if self._sessions and call.session is not None:
            return crc32(f"{tenant.key_id}/{call.session}".encode())
        if not self._prefixes:
            return None
        near, left = crc32((salt or "").encode()), self._prefix_bytes
        if call.endpoint is Endpoint.CHAT:
            return _chat(call.body["messages"], near, left)
        prompt = call.prompts[0]
        if isinstance(prompt, str):
            return crc32(_bytes(prompt, left)[:left], near)
        return crc32(array("I", prompt[: left // BYTES_PER_ID]).tobytes(), near)


def _chat(messages: list[dict[str, Any]], near: int, left: int) -> int:
    """The number of a chat's beginning: up to its first user's message, which is there in all later turns too.

    left: so many bytes of it are looked at.
    """
    for message in messages[:MESSAGES_MAX]:
        role, content = message.get("role"), message.get("content")
        if type(content) is str and type(role) is str:  # as mostly
            part = f"\0{role[:left]}{content[:left]}".encode()[:left]
        else:
            if isinstance(content, list):
                words = b"".join(_bytes(part.get("text") if isinstance(part, dict) else part, left) for part in content)
            else:
                words = _bytes(content, left)
            part = (b"\0" + _bytes(role, left) + words)[:left]
        near, left = crc32(part, near), left - len(part)
        if not left or role == "user":
            break
    return near


def _bytes(text: Any, bytes_max: int) -> bytes:
    return text[:bytes_max].encode() if isinstance(text, str) else b""
