"""How fast a session's pages go from an engine's memory to a store and back, beside two copies of as many bytes: from
memory to memory in large pieces, and out of LMDB's map page by page, which no load from there can do without.

    .venv-vllm/bin/python -m tests.vllm_plugin.store.speed OUT [--mib 1024] [--rounds 5]

Back is all of it: fetched, copied into the paged memory, and verified there (loads.py). Rounds are interleaved, so that
a busy machine is busy for all. Writes its JSON to OUT.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from tests.vllm_plugin.store.paged import LAYER_BYTES, LAYOUT, Paged, as_in_vllm, key_of, named
from tests.vllm_plugin.store.redis_servers import Redis, address_of, made_key
from vllm_plugin.crew import THREADS_MAX
from vllm_plugin.loads import SLICE_BYTES, Loads
from vllm_plugin.page import Load, Page
from vllm_plugin.store import PageStore, open_store
from vllm_plugin.store.redis_store import TIDY_S_MAX

KIB, MIB = 2**10, 2**20
PAGE_BYTES = (256 * KIB, 2 * MIB)
LOAD_BYTES = 128 * MIB  # that one request waits for; a session is as many of them as it takes
REDIS_PART = 4  # Redis moves a part of so many of it
WITHIN_S, TRIES = 120.0, 4

Seconds = dict[str, list[float]]


def main() -> None:
    """Measure, and write it down."""
    parser = argparse.ArgumentParser(description="Pages to a store and back, beside a copy.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = {"bytes": given.mib * MIB, "redis_bytes": given.mib * MIB // REDIS_PART, "threads": THREADS_MAX}
    found["pages"] = {size: of_pages(size, given.mib * MIB, given.rounds) for size in PAGE_BYTES}
    found["first_writes"] = first_writes(min(512, given.mib) * MIB)
    given.out.write_text(json.dumps(found))


def of_pages(size: int, session_bytes: int, rounds: int) -> dict[str, float | Seconds]:
    """Seconds of each round; the first one warms up, and counts for nothing."""
    count, seconds = session_bytes // size, {}
    rng = np.random.default_rng(size)
    with ExitStack() as stack:
        place = Path(stack.enter_context(directory()))
        lmdb, redis = stores(stack, place, session_bytes)
        memory = as_in_vllm(count, size // LAYER_BYTES, rng)
        right = [layer.copy() for layer in memory]
        worlds = {
            "lmdb": (Paged(lmdb, memory, LAYOUT, threads=THREADS_MAX), count),
            "lmdb, one thread": (Paged(lmdb, memory, LAYOUT), count),
            "redis": (Paged(redis, memory, LAYOUT, threads=THREADS_MAX), count // REDIS_PART),
        }
        source, target = (np.full(session_bytes, one, np.uint8) for one in (1, 2))
        for number in range(rounds + 1):
            timed = timer(seconds if number else {})
            timed("copy", partial(in_pieces, target, source))
            for name, (world, pages_count) in worlds.items():
                world.session = f"round {number}"
                if name != "lmdb, one thread":
                    saved(world, named(f"round {number}", pages_count), timed, name)
                for layer in memory:
                    layer[:] = 0
                wanted = named(f"round {number}", pages_count)
                timed(f"{name} load", partial(loaded, world, wanted))
                if name == "lmdb":
                    timed("map copy", partial(out_of_map, target, lmdb, world, wanted))
                    assert np.array_equal(target[: 2 * size], stored(world, wanted[:2]))
                assert all(np.array_equal(now[:pages_count], then[:pages_count])
                           for now, then in zip(memory, right, strict=True))  # fmt: skip
                for layer, then in zip(memory, right, strict=True):
                    layer[:] = then
            print(f"round {number} of {rounds}, pages of {size // KIB} KiB", file=sys.stderr, flush=True)
        evicted = lmdb.stats().evicted
    return {"seconds": seconds, "evicted": evicted}


def stores(stack: ExitStack, place: Path, session_bytes: int) -> tuple[PageStore, PageStore]:
    """Both, at hand, with room for some sessions."""
    size = f"size={5 * session_bytes // 2}&queue={2 * session_bytes}"
    lmdb = open_store(f"lmdb://{place}/store?{size}")
    stack.callback(lmdb.close)
    until_s = time.monotonic() + 60
    while lmdb.stats().populated_bytes < lmdb.stats().size_bytes and time.monotonic() < until_s:
        time.sleep(0.01)
    server = stack.enter_context(Redis(place / "redis"))
    redis = open_store(f"{address_of([server], made_key(place / 'key'))}&{size}".replace("size=16MiB&", ""))
    stack.callback(redis.close)
    return lmdb, redis


def saved(world: Paged, pages: list[Page], timed: Callable[..., None], name: str) -> None:
    """Gathered from the paged memory, and written. They are sealed before: that is done for every page anyway."""
    digests = world.digests.in_place(pages)

    def save() -> None:
        step = max(1, LOAD_BYTES // world.pages.page_bytes)
        for first in range(0, len(pages), step):
            some = zip(pages[first : first + step], digests[first : first + step], strict=True)
            copies = [world.exchange.copy(page, digest) for page, digest in some]
            answered(lambda copies=copies: world.store.put(copies, WITHIN_S))

    timed(f"{name} save", save)


def loaded(world: Paged, pages: list[Page]) -> None:
    """Request by request, as a worker does it while nothing else is computed. Everything must be there, and right."""
    step = max(1, LOAD_BYTES // world.pages.page_bytes)
    for first in range(0, len(pages), step):
        some = pages[first : first + step]
        answered(lambda some=some: brought(world, some))


def brought(world: Paged, pages: list[Page]) -> bool:
    """Whether all of them are in their blocks now."""
    loads = Loads(world.exchange, world.pages.page_bytes)
    loads.add(Load("r", tuple(pages), b""))
    right = 0
    while not loads.brought():
        right += sum(one.kind is None for one in loads.place(computes=False, step_s=0.0))
        loads.over()
    loads.close()
    return right == len(pages)


def answered(what: Callable[[], bool]) -> None:
    """Done, if need be again: a server that this machine kept from answering in time is left out for a while."""
    for _ in range(TRIES):
        if what():
            return
        time.sleep(TIDY_S_MAX)
    raise AssertionError("not there, or not right")


def first_writes(store_bytes: int) -> dict[str, float]:
    """Seconds for a quarter of a new store: with all of it at hand, the next quarter, and where nobody did that."""
    size, part = 2 * MIB, store_bytes // 4
    rng = np.random.default_rng(0)
    found = {}
    with directory() as place:
        for populate in (True, False):
            store = open_store(f"lmdb://{place}/{populate}?size={store_bytes}&queue={store_bytes}", populate=populate)
            until_s = time.monotonic() + 60
            while populate and store.stats().populated_bytes < store_bytes and time.monotonic() < until_s:
                time.sleep(0.01)
            world = Paged(store, as_in_vllm(part // size, size // LAYER_BYTES, rng), LAYOUT)
            for turn in ("first", "later"):
                copies = world.copies(named(turn, part // size))
                begun_s = time.perf_counter()
                assert store.put(copies, WITHIN_S)
                found[f"{turn}, {'at hand' if populate else 'not at hand'}"] = time.perf_counter() - begun_s
            store.close()
    return {"bytes": part, **found}


def in_pieces(target: np.ndarray, source: np.ndarray) -> None:
    """A plain copy."""
    for first in range(0, source.size, LOAD_BYTES):
        np.copyto(target[first : first + LOAD_BYTES], source[first : first + LOAD_BYTES])


def out_of_map(target: np.ndarray, store: PageStore, world: Paged, pages: list[Page]) -> None:
    """Pages copied as they lie in a store's map, one after the other; they are found, and nothing else is done."""
    size = world.pages.page_bytes
    step = max(1, SLICE_BYTES // size)
    for first in range(0, len(pages), step):
        with store.read([key_of(page.chain) for page in pages[first : first + step]]) as found:
            for at, page in enumerate(found, first):
                np.copyto(target[at * size : (at + 1) * size], np.frombuffer(page.payload, np.uint8))
            del page, found


def stored(world: Paged, pages: list[Page]) -> np.ndarray:
    """Pages that are in their blocks, as a store has them."""
    return np.frombuffer(b"".join(world.pages.bytes(page.block) for page in pages), np.uint8)


def timer(seconds: Seconds) -> Callable[[str, Callable[[], None]], None]:
    def timed(name: str, what: Callable[[], None]) -> None:
        begun_s = time.perf_counter()
        what()
        seconds.setdefault(name, []).append(time.perf_counter() - begun_s)

    return timed


@contextmanager
def directory() -> Iterator[str]:
    """In shared memory, removed afterwards."""
    place = tempfile.mkdtemp(prefix="holdfast-speed-", dir="/dev/shm")
    try:
        yield place
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
