"""Where the copies of a page are, and which of them is intact."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from vllm_plugin.store.redis_entries import Head, Seals
from vllm_plugin.store.redis_server import ODD, SLOW_S_MAX, Server, Unreachable
from vllm_plugin.store.redis_versions import Versions

READ_BYTES = 16 * 2**20  # that are asked of a server at once


class Found(NamedTuple):
    """A page; pieces: its bytes, none where they were not asked for."""

    head: Head
    pieces: list[bytes]


class Wrong(NamedTuple):
    """What a server should have and has not. raw: the head of what it has instead; None where it has nothing."""

    server: Server
    key: bytes
    raw: bytes | None


class Copies:
    """Of each page there are so many, on the servers that come first for its key by rendezvous hashing."""

    def __init__(self, servers: Sequence[Server], copies: int, seals: Seals, versions: Versions) -> None:
        self.servers, self._copies, self._seals, self._versions = servers, copies, seals, versions

    def of(self, key: bytes) -> list[Server]:
        """The servers of a page, in the order in which they are asked."""

        def weight(server: Server) -> bytes:
            return blake2b(server.name.encode() + b"\0" + key, digest_size=8).digest()

        return sorted(self.servers, key=weight)[: self._copies]

    def judged(self, key: bytes, raw: bytes | None) -> Head | None:
        """The head that lies under a key, where it is ours, of this key, and no older than one that was seen."""
        head = self._seals.read(key, raw) if raw else None
        return head if head and self._versions.may_be(key, head.stamp) else None

    def find(self, keys: Iterable[bytes], until_s: float, *, whole: bool) -> tuple[dict[bytes, Found], list[Wrong]]:
        """The first intact copy of each page, and what else was met. Nothing is begun after until_s (monotonic).

        whole: with its bytes, verified; else its head is.
        """
        found: dict[bytes, Found] = {}
        wrong: list[Wrong] = []
        ranked = {key: self.of(key) for key in keys}
        for rank in range(self._copies):
            asked: defaultdict[Server, list[bytes]] = defaultdict(list)
            for key, servers in ranked.items():
                if key not in found:
                    asked[servers[rank]].append(key)
            for server, some in asked.items():
                try:
                    self._find_at(server, some, until_s, whole, found, wrong)
                except Unreachable:
                    continue  # its other copies are asked
                except ODD as error:
                    server.told(error)
        return found, wrong

    def _find_at(
        self, server: Server, keys: list[bytes], until_s: float, whole: bool,
        found: dict[bytes, Found], wrong: list[Wrong],
    ) -> None:  # fmt: skip
        if time.monotonic() > until_s:
            return
        heads: dict[bytes, Head] = {}
        begun_s = time.monotonic()
        raws = server.heads(keys)
        if time.monotonic() - begun_s > SLOW_S_MAX:
            server.leave_out(time.monotonic() - begun_s)  # from the next time on
        for key, raw in zip(keys, raws, strict=True):
            head = self.judged(key, raw)
            if head is None:
                wrong.append(Wrong(server, key, raw))
            elif not self._versions.denied(key, head.manifest.digest):
                heads[key] = head
        if not whole:
            found |= {key: Found(head, []) for key, head in heads.items()}
            return
        for some in _steps(heads):
            if time.monotonic() > until_s:
                return
            sizes = [(key, head.manifest.page_bytes) for key, head in some]
            for (key, head), pieces in zip(some, server.payloads(sizes), strict=True):
                if pieces is not None and self._seals.fits(key, head, pieces):
                    found[key] = Found(head, pieces)
                    self._versions.saw(key, head.stamp)
                else:
                    wrong.append(Wrong(server, key, head.raw))


def _steps(heads: dict[bytes, Head]) -> Iterator[list[tuple[bytes, Head]]]:
    step: list[tuple[bytes, Head]] = []
    size = 0
    for key, head in heads.items():
        if step and size + head.manifest.page_bytes > READ_BYTES:
            yield step
            step, size = [], 0
        step.append((key, head))
        size += head.manifest.page_bytes
    if step:
        yield step
