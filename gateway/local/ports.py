"""Ports of this machine that nobody has."""

import random
import socket
from contextlib import suppress

TRIES = 1_000
PORTS = range(10_000, 32_000)  # below those that the kernel gives to connections: one of these could take it


def free_ports(count: int) -> list[int]:
    """So many, drawn at random, that nobody has on loopback now. Raises RuntimeError where there are fewer."""
    free: list[int] = []
    for port in random.sample(PORTS, TRIES):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"fewer than {count} of {TRIES} ports are free")
