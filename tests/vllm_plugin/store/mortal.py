"""A process that uses a store until it is killed:  python -m tests.vllm_plugin.store.mortal URL SEED [what]

It ends with whoever started it, however that ends: its standard input is closed then.
"""

import contextlib
import os
import random
import sys
import threading
import time

from tests.vllm_plugin.store.pages import digest_of, key_of, page
from vllm_plugin.store import StoreBusy, open_store


def main(url: str, seed: str, what: str = "use") -> None:
    threading.Thread(target=end_with_owner, daemon=True).start()
    store = open_store(url, populate=what == "use")
    print("ready", flush=True)
    if what == "hold":  # the lock of all who write
        with store._tables.writing():
            print("holds", flush=True)
            threading.Event().wait()
    if what == "read":
        with store.read([key_of(1)]):
            print("reads", flush=True)
            threading.Event().wait()
    if what == "lose":
        lose(store)
    if what == "wait":
        threading.Event().wait()
    use(store, random.Random(seed))


def end_with_owner() -> None:
    sys.stdin.read()
    os._exit(1)


def lose(store) -> None:
    """Write pages for a session until it has moved elsewhere, and tell."""
    for number in range(1000, 100_000):
        if not store.put([page(number, "lost")]) and store.stats().fenced:
            print("fenced", flush=True)
            threading.Event().wait()
        if number == 1000:
            print("writes", flush=True)
        time.sleep(0.002)


def use(store, rng: random.Random) -> None:
    """More than there is room for, so that all the time something is put, evicted, zeroed, found and erased."""
    while True:
        numbers = [rng.randrange(400) for _ in range(rng.randint(1, 30))]
        session = f"session {rng.randrange(20)}"
        act = rng.random()
        if act < 0.7:
            version = rng.randrange(2)
            store.put([page(number, session, version=version, size=rng.choice((5000, 32768))) for number in numbers])
        elif act < 0.8:
            store.used_soon([key_of(number) for number in numbers], session)
        elif act < 0.9:
            with store.read([key_of(number) for number in numbers]) as found:
                read = [(one.key, one.manifest.digest, digest_of(one.payload)) for one in found if one]
            for key, digest, _ in read[:3]:
                store.quarantine(key, digest)
        else:
            with contextlib.suppress(StoreBusy):
                store.erase(session)


if __name__ == "__main__":
    main(*sys.argv[1:])
