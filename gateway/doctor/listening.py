"""Where ports of this machine listen, as Linux tells: /proc/net/tcp and tcp6."""

import socket
import struct
from contextlib import suppress
from pathlib import Path

TABLES = {"/proc/net/tcp": socket.AF_INET, "/proc/net/tcp6": socket.AF_INET6}
LISTENS = "0A"


def listening(port: int) -> tuple[str, ...] | None:
    """The addresses on which somebody listens at a port; None where that cannot be seen, or nobody is seen."""
    found: list[str] = []
    for table, family in TABLES.items():
        with suppress(OSError):
            found += [_address(line, family) for line in Path(table).read_text().splitlines()[1:] if _at(line, port)]
    return tuple(dict.fromkeys(found)) or None


def _at(line: str, port: int) -> bool:
    words = line.split()
    return words[3] == LISTENS and int(words[1].rpartition(":")[2], 16) == port


def _address(line: str, family: int) -> str:
    """Words of 32 bits, each in the order of this machine."""
    told = line.split()[1].rpartition(":")[0]
    words = [int(told[at : at + 8], 16) for at in range(0, len(told), 8)]
    address = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
    return address.removeprefix("::ffff:") if address != "::ffff:0:0" else address
