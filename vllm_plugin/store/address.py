"""The address of a store in shared memory, read. Pure."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from vllm_plugin.store.contract import StoreRefused

BYTES = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
UNIT_BYTES = 2**20  # sizes are whole ones
SIZE_BYTES_MIN = 8 * UNIT_BYTES


class Address(NamedTuple):
    """directory: where it is. size_bytes: how large it may become, whole MiB; of who makes it.

    retention_s: pages that nobody used for so long go. queue_bytes: what may wait to be written, in each process.
    """

    directory: Path
    size_bytes: int = 8 * 2**30
    retention_s: float = 3600.0
    queue_bytes: int = 256 * 2**20


def read(url: str) -> Address:
    """Read `lmdb:///DIRECTORY?size=8GiB&retention=1h&queue=256MiB`. Raises StoreRefused, saying what to write."""
    parts = urlsplit(url)
    if parts.scheme != "lmdb" or parts.netloc or not parts.path.strip("/") or parts.fragment:
        raise StoreRefused(f"{url}: write lmdb:// and an absolute path, such as lmdb:///dev/shm/holdfast")
    values: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in OPTIONS:
            raise StoreRefused(f"{url}: there is no option {name}; there are {', '.join(OPTIONS)}")
        field, units, least, example = OPTIONS[name]
        value = amount(text, units)
        if value is None or not least <= value < math.inf:
            raise StoreRefused(f"{url}: {name}={text} is no amount of at least {least}; write {name}={example}")
        values[field] = value
    address = Address(Path(unquote(parts.path)), **values)
    return address._replace(size_bytes=address.size_bytes // UNIT_BYTES * UNIT_BYTES)


OPTIONS = {  # name: field, units, least value, example
    "size": ("size_bytes", BYTES, SIZE_BYTES_MIN, "8GiB"),
    "retention": ("retention_s", SECONDS, 1, "1h"),
    "queue": ("queue_bytes", BYTES, UNIT_BYTES, "256MiB"),
}


def amount(text: str, units: dict[str, int]) -> int | None:
    """How many of the units' first; None for what is no amount."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([A-Za-z]*)", text)
    if not found:
        return None
    unit = next((unit for unit in units if unit.lower() == found[2].lower()), None)
    return None if unit is None else round(float(found[1]) * units[unit])
