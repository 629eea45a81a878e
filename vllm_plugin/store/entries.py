"""How a manifest is written down. Pure: no pickle, and nothing that is read here is trusted."""

import struct
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from vllm_plugin.store.contract import Manifest

VERSION = 1
CHECK_BYTES = 8
SESSION_BYTES_MAX = 255
_HEAD = struct.Struct(f"<B{CHECK_BYTES}sQ")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Manifest).decode


class Entry(NamedTuple):
    """A manifest, and the number of its payload."""

    manifest: Manifest
    serial: int


def encoded(key: bytes, manifest: Manifest, serial: int) -> bytes:
    """An entry, as it is stored under a key: version, check, number, manifest."""
    text = manifest.session.encode("utf-8", "backslashreplace").decode()  # what cannot be written is told
    body = _encode(manifest if text == manifest.session else manifest._replace(session=text))
    return _HEAD.pack(VERSION, _check(key, serial, body), serial) + body


def decoded(key: bytes | memoryview, stored: bytes | memoryview) -> Entry | None:
    """The entry of a key; None for one that was damaged, is another key's, or of another version."""
    if len(stored) <= _HEAD.size:
        return None
    version, check, serial = _HEAD.unpack_from(stored)
    body = bytes(stored[_HEAD.size :])
    if version != VERSION or check != _check(bytes(key), serial, body):
        return None
    try:
        return Entry(_decode(body), serial)
    except (msgspec.MsgspecError, ValueError):  # ValueError: of the text of a string
        return None


def session_key(session: str) -> bytes:
    """A session's name as a key: any text, each with its own. Long ones are cut, and told apart by a hash."""
    name = b":" + session.encode("utf-8", "backslashreplace")  # a key has a byte at least
    if len(name) <= SESSION_BYTES_MAX:
        return name
    return name[:200] + b"..." + blake2b(name, digest_size=16).hexdigest().encode()


def session_name(key: bytes) -> str:
    """The name that a session's key shows."""
    return key[1:].decode("utf-8", "replace")


def _check(key: bytes, serial: int, body: bytes) -> bytes:
    """Binds what is stored to its key, against accidents."""
    head = struct.pack("<QQ", len(key), serial)
    return blake2b(head + key + body, digest_size=CHECK_BYTES).digest()
