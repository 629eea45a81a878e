"""What a page is in Redis: a head and pieces of bytes, sealed with a key that Redis does not have. Pure.

The seals are MACs, made as `vllm_plugin.digest.seal_keyed` makes its own: keyed BLAKE3 over a header, with its length
before it, and over the bytes. Both name the store's key, so that a page that is moved under another one is wrong there,
and that of the bytes a number of its own besides, so that nobody sees which pages are alike by their seals.
"""

import hmac
import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
from blake3 import blake3

from vllm_plugin.store.contract import Manifest

VERSION = 1
MAC_BYTES = NONCE_BYTES = 16
CHUNK_BYTES = 2**20
HEAD_BYTES_MAX = 64 * 2**10  # of it most is a session's name
_HEAD = struct.Struct(f"<B{MAC_BYTES}s")
_BODY = struct.Struct(f"<Q{NONCE_BYTES}s{MAC_BYTES}s")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Manifest).decode


class Head(NamedTuple):
    """stamp: when it was written, in ns; a later version of a page has a later one. raw: as it is stored."""

    manifest: Manifest
    stamp: int
    nonce: bytes
    payload_mac: bytes
    raw: bytes


class Seals:
    """Makes heads, and judges what comes back."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def made(self, key: bytes, manifest: Manifest, payload: bytes | memoryview, stamp: int) -> Head:
        """The head of a page that is to be written."""
        text = manifest.session.encode("utf-8", "backslashreplace").decode()  # what cannot be written is told
        manifest = manifest if text == manifest.session else manifest._replace(session=text)
        nonce = os.urandom(NONCE_BYTES)
        payload_mac = self._payload_mac(key, nonce, [payload])
        body = _BODY.pack(stamp, nonce, payload_mac) + _encode(manifest)
        return Head(manifest, stamp, nonce, payload_mac, _HEAD.pack(VERSION, self._head_mac(key, body)) + body)

    def read(self, key: bytes, raw: bytes) -> Head | None:
        """The head that was stored under a key; None for one that we did not write there."""
        if len(raw) <= _HEAD.size + _BODY.size:
            return None
        version, mac = _HEAD.unpack_from(raw)
        body = raw[_HEAD.size :]
        if version != VERSION or not hmac.compare_digest(mac, self._head_mac(key, body)):
            return None
        try:
            stamp, nonce, payload_mac = _BODY.unpack_from(body)
            return Head(_decode(body[_BODY.size :]), stamp, nonce, payload_mac, raw)
        except (msgspec.MsgspecError, ValueError):
            return None

    def fits(self, key: bytes, head: Head, pieces: Iterable[bytes | memoryview]) -> bool:
        """Whether these bytes are the ones that were written with this head."""
        return hmac.compare_digest(head.payload_mac, self._payload_mac(key, head.nonce, pieces))

    def _head_mac(self, key: bytes, body: bytes) -> bytes:
        return self._mac(b"holdfast page head " + key, [body])

    def _payload_mac(self, key: bytes, nonce: bytes, pieces: Iterable[bytes | memoryview]) -> bytes:
        return self._mac(b"holdfast page bytes " + nonce + key, pieces)

    def _mac(self, header: bytes, pieces: Iterable[bytes | memoryview]) -> bytes:
        mac = blake3(struct.pack("<I", len(header)) + header, key=self._secret)
        for piece in pieces:
            mac.update(piece)
        return mac.digest(length=MAC_BYTES)


def lengths(page_bytes: int) -> list[int]:
    """Of the pieces that a page is stored in, one at least."""
    whole, rest = divmod(page_bytes, CHUNK_BYTES)
    return [CHUNK_BYTES] * whole + ([rest] if rest or not whole else [])


def cut(payload: bytes | memoryview) -> Iterator[memoryview]:
    """Its pieces, in order."""
    view = memoryview(payload).cast("B")
    for piece in range(len(lengths(view.nbytes))):
        yield view[piece * CHUNK_BYTES : (piece + 1) * CHUNK_BYTES]
