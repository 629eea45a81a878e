"""A port that nobody has."""

import socket


def free_port() -> int:
    """One on loopback; it may be taken by somebody else before it is used."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        found: int = one.getsockname()[1]
        return found
