"""What is said of a model besides its weights: plain values, packed so that no two different ones are alike. Pure."""

import dataclasses
import enum
import struct
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

FACT_DEPTH_MAX = 32


class FactRefused(TypeError):
    """A value that cannot be told from others by what it is, such as an object with an address; says where it is."""


class _Absent:
    """What a config does not have; not the same as one that says None."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()


def packed(value: Any, where: str = "value", depth: int = 0) -> bytes:
    """A value's bytes: kind, length, contents. Of mappings and sets the order does not matter.

    None, ABSENT, bool, int, float, str, bytes, enums, types, torch dtypes, sequences, mappings, sets, dataclasses.
    Raises FactRefused for all else, and never takes a `repr` for it: that may be of an address.
    """
    if depth > FACT_DEPTH_MAX:
        raise FactRefused(f"{where}: nested more than {FACT_DEPTH_MAX} deep")
    kind, content = _plain(value) or _nested(value, where, depth + 1)
    return struct.pack("<BQ", len(kind), len(content)) + kind.encode() + content


def _plain(value: Any) -> tuple[str, bytes] | None:
    """Kind and contents of what holds nothing else. A bool is an int and some enums are strings: they come first."""
    if value is None or isinstance(value, _Absent):
        return repr(value), b""
    if isinstance(value, enum.Enum):
        return "enum", f"{type(value).__name__}.{value.name}".encode()
    if isinstance(value, bool | int):
        return type(value).__name__ if isinstance(value, bool) else "int", str(int(value)).encode()
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, str):
        return "str", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return "bytes", value
    if isinstance(value, type):
        return "type", f"{value.__module__}.{value.__qualname__}".encode()
    if type(value).__name__ == "dtype":  # of torch, which is not needed here
        return "dtype", str(value).encode()
    return None


def _nested(value: Any, where: str, depth: int) -> tuple[str, bytes]:
    if isinstance(value, Mapping):
        pairs = [(packed(key, where, depth), packed(item, f"{where}.{key}", depth)) for key, item in value.items()]
        return "map", b"".join(key + item for key, item in sorted(pairs))
    if isinstance(value, Set):
        return "set", b"".join(sorted(packed(item, where, depth) for item in value))
    if isinstance(value, Sequence):
        return "list", b"".join(packed(item, f"{where}[{at}]", depth) for at, item in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name, ABSENT) for field in dataclasses.fields(value)}
        return "map", packed(fields, where, depth)
    raise FactRefused(f"{where}: a {type(value).__name__} is not a fact")
