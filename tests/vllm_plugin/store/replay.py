"""A trace of requests replayed against a store, with a small page for each block of their prompts.

    .venv-vllm/bin/python -m tests.vllm_plugin.store.replay OUT [--trace FILE] [--requests N] [--seed 1]

Without a file of Mooncake's (*.jsonl) it draws conversations of its own. Writes its JSON to OUT.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.sim.traces import HASHED_TOKENS, mooncake
from vllm_plugin.store import Manifest, Page, address
from vllm_plugin.store.lmdb import LmdbStore

SMALL_BYTES = 256  # of a page, where there is room for all
PAGE_BYTES, TAKEN_BYTES = 16 * 4096 - 16, 17 * 4096  # where there is not: as with large ones, hardly more than that
BOUNDS = (0.1, 0.3)  # of what a trace needs
BOUNDED_REQUESTS = 4000  # the first ones, that bounded stores see
STORE_BYTES = 2 * 2**30
MODEL = b"m" * 32
WITHIN_S = 60.0
SYSTEMS, SYSTEM_BLOCKS, TURNS_MEAN = 3, 4, 4.0  # of conversations that are drawn


class Asked(NamedTuple):
    """A request: when, in seconds, of which session, and the ids of its prompt's blocks, which name all before them."""

    at_s: float
    session: int
    ids: tuple[int, ...]


def main() -> None:
    """Replay, and write down what it came to."""
    parser = argparse.ArgumentParser(description="A trace of requests replayed against a store.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    trace = of_file(given.trace) if given.trace else drawn(given.seed, given.requests)
    given.out.write_text(json.dumps(replayed(trace[: given.requests])))


def of_file(path: Path) -> list[Asked]:
    """Whoever goes on with all that a request had asked is the same session.

    The last block of a prompt is not full, and goes by another id then. The first one is the same in all of them.
    """
    asked, ends, sessions = [], {}, 0
    for one in mooncake(path):
        ids = one.prefix
        session = next((ends[block] for block in reversed(ids) if block in ends), sessions)
        sessions += session == sessions
        if len(ids) > 2:
            ends[ids[-2]] = session
        asked.append(Asked(one.at_s, session, ids))
    return asked


def drawn(seed: int, requests: int) -> list[Asked]:
    """Conversations that begin alike, take turns, and grow with each."""
    rng, found, ids = random.Random(seed), [], SYSTEMS * SYSTEM_BLOCKS
    session = 0
    while len(found) < requests:
        system = rng.randrange(SYSTEMS)
        blocks = tuple(range(system * SYSTEM_BLOCKS, (system + 1) * SYSTEM_BLOCKS))
        at_s = rng.uniform(0, 3000)
        for _ in range(1 + int(rng.expovariate(1 / TURNS_MEAN))):
            new = rng.randint(1, 8)
            blocks += tuple(range(ids, ids + new))
            ids += new
            found.append(Asked(at_s, session, blocks))
            at_s += rng.expovariate(1 / 60)
        session += 1
    return sorted(found)


def replayed(trace: Sequence[Asked]) -> dict[str, Any]:
    """What one store holds of it, beside a copy for each; and what bounded ones find again."""
    by_session: dict[int, set[int]] = {}
    for one in trace:
        by_session.setdefault(one.session, set()).update(one.ids)
    whole = on_store(trace, STORE_BYTES, SMALL_BYTES)
    asked = sum(len(one.ids) for one in trace)
    assert whole["evicted"] == 0, "it was to hold everything"
    some = trace[:BOUNDED_REQUESTS]
    needs = TAKEN_BYTES * len({block for one in some for block in one.ids})
    bounded = []
    for share in BOUNDS:
        found = on_store(some, int(share * needs), PAGE_BYTES)
        bounded.append({"share": share, **found, "lru_hit": lru(some, found["pages_max"])})
    return {
        "requests": len(trace), "sessions": len(by_session), "block_tokens": HASHED_TOKENS, "asked": asked,
        "of_sessions": sum(map(len, by_session.values())), "stored": whole["pages_max"], "hit": whole["hit"],
        "unique": len({block for one in trace for block in one.ids}), "hit_possible": lru(trace, len(trace) * 1000),
        "bytes": whole["bytes"], "bounded": bounded, "bounded_requests": len(some),
        "bounded_asked": sum(len(one.ids) for one in some), "bounded_hit": lru(some, len(trace) * 1000),
    }  # fmt: skip


def on_store(trace: Sequence[Asked], size_bytes: int, page_bytes: int) -> dict[str, int]:
    """hit: blocks found, from the first on without a gap, before their request stored what was missing."""
    place, now_s = tempfile.mkdtemp(prefix="holdfast-replay-", dir="/dev/shm"), 0.0
    url = f"lmdb://{place}/store?size={max(size_bytes, address.SIZE_BYTES_MIN)}&retention=10d"
    store = LmdbStore(address.read(url), populate=False, make=True, clock=lambda: now_s)
    hit = pages_max = 0
    try:
        for number, one in enumerate(trace):
            now_s = one.at_s
            pages = [page(block, at, one, page_bytes) for at, block in enumerate(one.ids)]
            hit += store.held([each.key for each in pages])
            store.put(pages, WITHIN_S)
            if number % 100 == 99 or number + 1 == len(trace):
                pages_max = max(pages_max, store.stats().pages)
            if number % 2000 == 1999:
                print(f"request {number + 1} of {len(trace)}", file=sys.stderr, flush=True)
        stats = store.stats()
        return {"hit": hit, "pages_max": pages_max, "bytes": stats.bytes, "evicted": stats.evicted, "shed": stats.shed}
    finally:
        store.close()
        shutil.rmtree(place)


def page(block: int, at: int, asked: Asked, size: int) -> Page:
    chain = block.to_bytes(32, "big")
    session = f"session {asked.session}"
    manifest = Manifest(chain[-16:], chain, HASHED_TOKENS * at, HASHED_TOKENS, size, "f", session, asked.at_s)
    return Page(MODEL + chain, manifest, bytes(size))


def lru(trace: Sequence[Asked], pages: int) -> int:
    """The same, of a store that evicts the page that was not used for longest; of a prompt the last one first."""
    kept: OrderedDict[int, None] = OrderedDict()
    hit = 0
    for one in trace:
        hit += next((count for count, block in enumerate(one.ids) if block not in kept), len(one.ids))
        for block in reversed(one.ids):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > pages:
            kept.popitem(last=False)
    return hit


if __name__ == "__main__":
    main()
