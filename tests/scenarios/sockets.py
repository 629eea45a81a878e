"""Clients that are nothing but a socket."""

import json
import socket
import time
from typing import Any

from tests.processes import Gateway
from tests.scenarios.asking import CHAT

LINGER_ZERO = b"\1\0\0\0\0\0\0\0"


def connect(gateway: Gateway, receive_bytes: int | None = None) -> socket.socket:
    """A connection to the public port. receive_bytes: what the kernel may take for a client that does not read."""
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(10)
    client.connect(("127.0.0.1", gateway.port))
    return client


def post(body: Any, *headers: str, key: str | None = None, path: str = CHAT) -> bytes:
    """A whole request, its head as short as may be."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(f"Content-Length: {len(data)}", *headers, key=key, path=path) + data


def head(*headers: str, key: str | None = None, path: str = CHAT) -> bytes:
    """The head of a POST."""
    given = [f"Authorization: Bearer {key}"] if key is not None else []
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *given, *headers, "", ""]).encode()


def rest(client: socket.socket, seconds: float = 10.0) -> bytes:
    """Read until the gateway hangs up. Raises TimeoutError where it does not in time."""
    got, until = bytearray(), time.monotonic() + seconds
    while True:
        client.settimeout(max(0.001, until - time.monotonic()))
        try:
            piece = client.recv(1 << 20)
        except ConnectionResetError:
            return bytes(got)
        if not piece:
            return bytes(got)
        got += piece


def until_has(client: socket.socket, mark: bytes) -> bytes:
    """Read until something has come."""
    got = b""
    while mark not in got:
        piece = client.recv(1 << 16)
        assert piece, f"the connection ended after {got[-200:]!r}"
        got += piece
    return got


def reset(client: socket.socket) -> None:
    """Hang up by RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    client.close()


def hung_up(client: socket.socket) -> bool:
    """Whether the gateway has hung up by now; what it sent before is read and dropped."""
    client.setblocking(False)
    try:
        while client.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
