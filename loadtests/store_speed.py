"""What it costs to put pages and to read them, beside a copy:  python -m loadtests.store_speed [--json] [--quick]

Run it with the Python of vLLM's environment. A store of its own in /dev/shm, which is removed. Rounds are interleaved
with copies of as many bytes, so that a busy machine is busy for all; what may be compared between machines is the
ratio to the copy, of one run. Reading is into memory of this process, as a page is used.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from hashlib import blake2b

from vllm_plugin.store import Manifest, Page, PageStore, open_store

KIB, MIB = 2**10, 2**20
PAGE_BYTES = (256 * KIB, 2 * MIB)
ROUND_BYTES, STORE_BYTES, ROUNDS = 128 * MIB, 1024 * MIB, 9
KEYS = 2000


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description="What it costs to put pages and to read them, beside a copy.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little of all: to see that it runs")
    given = parser.parse_args()
    scale, rounds = (16, 3) if given.quick else (1, ROUNDS)
    place = tempfile.mkdtemp(prefix="holdfast-speed-", dir="/dev/shm")
    try:
        told = measured(f"lmdb://{place}/store?size={STORE_BYTES // scale}", ROUND_BYTES // scale, rounds)
    finally:
        shutil.rmtree(place)
    if given.json:
        print(json.dumps(told, indent=1))
        return
    for name in ("open_s", "populate_s", "held_us_per_key"):
        print(f"{name:20}{told[name]:10}")
    print(f"{'page':>12}{'what':>20}{'GB/s':>8}{'of the copy':>14}")
    for row in told["rows"]:
        print(f"{row['page_bytes']:12,}{row['what']:>20}{row['gb_per_s']:8.1f}{row['of_copy']:14.2f}")


def measured(url: str, round_bytes: int, rounds: int) -> dict:
    """All of it."""
    begun = time.perf_counter()
    store = open_store(url)
    open_s = time.perf_counter() - begun
    while store.stats().populated_bytes < store.stats().size_bytes and time.perf_counter() - begun < 60:
        time.sleep(0.005)
    populate_s = time.perf_counter() - begun - open_s
    rows = []
    for size in PAGE_BYTES:
        rows += of_pages(store, size, round_bytes, rounds)
        store.erase_all(60)
    told = {
        "size_bytes": store.stats().size_bytes,
        "open_s": round(open_s, 3),
        "populate_s": round(populate_s, 3),
        "held_us_per_key": round(held_us(store), 2),
        "rows": rows,
    }
    store.close()
    return told


def of_pages(store: PageStore, size: int, round_bytes: int, rounds: int) -> list[dict]:
    """Medians of interleaved rounds, of pages of one size; the last ones find the store full."""
    count = round_bytes // size
    payloads = [os.urandom(size) for _ in range(count)]
    target = memoryview(bytearray(count * size))
    seconds: dict[str, list[float]] = {}

    def timed(name: str, what) -> None:
        evicted = store.stats().evicted
        begun = time.perf_counter()
        what()
        taken = time.perf_counter() - begun
        name += ", evicting" if store.stats().evicted > evicted else ""
        seconds.setdefault(name, []).append(taken)

    def into(found) -> None:
        for at, page in enumerate(found):
            target[at * size : (at + 1) * size] = page.payload if isinstance(page, Page) else page

    def read() -> None:
        with store.read(keys) as found:
            into(found)

    into(payloads)  # memory of this process that was touched
    for number in range(rounds):
        pages = [page(number, at, payload) for at, payload in enumerate(payloads)]
        keys = [one.key for one in pages]
        timed("copy", lambda: into(payloads))
        timed("put", lambda pages=pages: store.put(pages, 60))
        timed("read", read)
    assert store.stats().shed == 0
    speed = {name: round_bytes / statistics.median(taken) / 1e9 for name, taken in seconds.items()}
    return [
        {"page_bytes": size, "what": name, "gb_per_s": round(value, 2), "of_copy": round(value / speed["copy"], 3)}
        for name, value in speed.items()
    ]


def held_us(store: PageStore) -> float:
    """What one key costs to look up, in microseconds."""
    pages = [page(-1, at, b"%d" % at) for at in range(KEYS)]
    store.put(pages)
    keys = [one.key for one in pages]
    begun = time.perf_counter()
    assert store.held(keys) == KEYS
    return (time.perf_counter() - begun) / KEYS * 1e6


def page(number: int, at: int, payload: bytes) -> Page:
    key = b"f" * 32 + blake2b(b"%d %d %d" % (number, at, len(payload)), digest_size=32).digest()
    digest = blake2b(key, digest_size=16).digest()
    return Page(key, Manifest(digest, key[-32:], at, 16, len(payload), "", f"session {number}", time.time()), payload)


if __name__ == "__main__":
    main()
