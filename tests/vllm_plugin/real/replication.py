"""What replication costs a real vLLM, and what a bad page store does to it: rounds of the same work, with and without.

    .venv-vllm/bin/python -m tests.vllm_plugin.real.replication OUT.json --kind lmdb [--size tiny] [--pairs 2]

    lmdb      on and off by turns; a store whose pages were all damaged; tails
    full      a store in shared memory that one session fills
    redis     on and off by turns; a server that is stopped most of the time; one that is killed
    restore   a running stream, while sessions are loaded, and while they are computed

«Off» is the same engine in the same process, which gives its store nothing. All is in one process here, and in three in
a server: so the store's threads are more in the way of the engine than they would be.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtests.gameday.store_hand import StoreHand
from tests.vllm_plugin.real.costs import SIZES, made
from tests.vllm_plugin.real.engine import Engine
from tests.vllm_plugin.store.redis_servers import Redis, address_of, made_key

BLOCK, AT_ONCE, PROMPT_TOKENS, ANSWER_TOKENS = 32, 16, 100, 32
SETTLED_S_MAX = 60.0
TAILS = 4  # that are timed
STOPPED_S, GOES_S = 0.2, 0.05  # of a slow server, by turns
ONE_SESSION = {"kv_transfer_params": {"holdfast_session": "one"}}
Round = dict[str, Any]


class Replicating:
    """An engine with a store, whose replication can be switched off and on."""

    def __init__(self, folder: Path, address: str, size: str, **options: Any) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        said = {"num_gpu_blocks_override": 1024, "max_num_seqs": AT_ONCE, "max_model_len": 4096} | options
        self.engine = Engine(folder, {"store": address}, model=str(made(size)), **said)
        self.half = get_kv_transfer_group()._worker_half
        self.store = get_kv_transfer_group()._store
        self._exchange = self.half.exchange

    def round(self, seed: int, *, on: bool, waves: int = 1, **sampling: Any) -> Round:
        """So many prompts that nobody has seen, as many at once as there may be; prompt and answer fill pages."""
        self.half.exchange = self._exchange if on else None
        rng, engine = random.Random(seed), self.engine
        engine.forget()
        before, wall_s, cpu_s = self.store.writing(), time.perf_counter(), time.process_time()
        names = [
            engine.add([rng.randrange(10, 8000) for _ in range(PROMPT_TOKENS)], ANSWER_TOKENS, **sampling)
            for _ in range(waves * AT_ONCE)
        ]
        gaps = self.gaps(names)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        now = self.store.writing()
        self.half.exchange = self._exchange
        counted = {name: getattr(now, name) - getattr(before, name) for name in now._fields[2:]}
        answers = [engine.tokens[name] for name in names]
        return {
            "tokens_per_s": len(names) * ANSWER_TOKENS / wall_s, "wall_s": wall_s, "cpu_s": cpu_s, "answers": answers,
            "gap_p50_s": quantile(gaps, 0.5), "gap_p99_s": quantile(gaps, 0.99), "lag_s": now.lag_s,
            "ended_well": sum(engine.ended[name] == "length" for name in names), "asked": len(names), **counted,
        }  # fmt: skip

    def gaps(self, names: list[str]) -> list[float]:
        """Until they have ended: how long each waited between two of its tokens, in seconds."""
        engine, gaps = self.engine, list[float]()
        at_s: dict[str, tuple[int, float]] = {}
        while any(name not in engine.ended for name in names):
            engine.step()
            now_s = time.perf_counter()
            for name in names:
                count = len(engine.tokens.get(name, ()))
                had, since_s = at_s.get(name, (0, now_s))
                if count > had:
                    gaps += [now_s - since_s] if had else []
                    at_s[name] = count, now_s
        return gaps

    def settle(self) -> None:
        """All that waits is written, or lost."""
        deadline_s = time.monotonic() + SETTLED_S_MAX
        self.engine.ask([1, 2, 3], 2)  # what was filled last leaves a step later
        while self.store.writing().queued_pages:
            assert time.monotonic() < deadline_s, self.store.writing()
            time.sleep(0.05)

    def pairs(self, count: int, seed: int, *, warm: bool = False, **sampling: Any) -> list[dict[str, Round]]:
        """On and off by turns, each first as often as the other. The first pair warms up, if not warm."""
        done = []
        for number in range(warm, count + 1):
            order = [True, False] if number % 2 else [False, True]
            pair = {on: self.round(seed + 10 * number + on, on=on, **sampling) for on in order}
            self.settle()
            done.append({"on": told(pair[True]), "off": told(pair[False])})
            print(f"pair {number} of {count}: {cost(done[-1]):+.1%}", file=sys.stderr, flush=True)
        return done[not warm :]

    def restore(self, sessions: int, tokens: int, seed: int) -> dict[str, Any]:
        """Gaps of a running stream: alone, while so many sessions are loaded, and while as many are computed."""
        rng, engine = random.Random(seed), self.engine
        prompts = [[rng.randrange(10, 8000) for _ in range(tokens)] for _ in range(sessions)]
        for prompt in prompts:
            engine.ask(prompt, 1)
        self.settle()
        found: dict[str, Any] = {"sessions": sessions, "tokens": tokens}
        found["alone"] = self._stream(rng, [])
        engine.forget()
        loaded = engine.metric("holdfast_pages_loaded")
        found["loading"] = self._stream(rng, [(prompt, None) for prompt in prompts])
        found["pages_loaded"] = engine.metric("holdfast_pages_loaded") - loaded
        found["pages"] = sessions * ((tokens - 1) // BLOCK)
        found["computing"] = self._stream(rng, [(prompt, "computed") for prompt in prompts])
        return found

    def _stream(self, rng: random.Random, others: list[tuple[list[int], str | None]]) -> dict[str, float]:
        """A stream that others join after its 20th token. until_s: when all of them have their first token."""
        engine, names, gaps, firsts = self.engine, list[str](), list[float](), list[float]()
        stream = engine.add([rng.randrange(10, 8000) for _ in range(40)], 400)
        count, last_s, joined_s = 0, 0.0, 0.0
        while stream not in engine.ended:
            engine.step()
            now_s = time.perf_counter()
            if len(engine.tokens.get(stream, ())) > count:
                count = len(engine.tokens[stream])
                waits = not names or len(firsts) < len(names)
                gaps += [now_s - last_s] if count > 20 and (waits or not others) else []
                last_s = now_s
            if count == 20 and others and not names:
                joined_s, names = now_s, [engine.add(prompt, 1, salt=salt) for prompt, salt in others]
            firsts += [now_s - joined_s for name in names[len(firsts) :] if name in engine.ended]
        engine.run(names)
        gaps = gaps or [0.0]
        return {
            "gaps": len(gaps), "p50_s": quantile(gaps, 0.5), "p99_s": quantile(gaps, 0.99), "most_s": max(gaps),
            "first_token_s": max(firsts, default=0.0),
        }  # fmt: skip

    def tails(self, seed: int) -> dict[str, float]:
        """First token of a prompt whose pages are here, with a tail of one token and with the longest there can be."""
        rng, times = random.Random(seed), {1: list[float](), BLOCK - 1: list[float]()}
        for _ in range(TAILS):
            for tail, seen in times.items():
                prompt = [rng.randrange(10, 8000) for _ in range(8 * BLOCK + tail)]
                self.engine.ask(prompt, 1)
                began_s = time.perf_counter()
                self.engine.ask(prompt, 1)
                seen.append(time.perf_counter() - began_s)
        return {f"{tail}_s": statistics.median(seen) for tail, seen in times.items()}


def told(one: Round) -> Round:
    return {name: value for name, value in one.items() if name != "answers"}


def cost(pair: dict[str, Round]) -> float:
    return pair["off"]["tokens_per_s"] / pair["on"]["tokens_per_s"] - 1


def quantile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@contextlib.contextmanager
def shared_memory() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="holdfast-replication-", dir="/dev/shm"))
    try:
        yield place / "store"
    finally:
        shutil.rmtree(place)


def lmdb(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    with shared_memory() as place:
        address = f"lmdb://{place}?size=2GiB"
        it = Replicating(folder, address, given.size)
        found: dict[str, Any] = {"pairs": it.pairs(given.pairs, 1000), "tails": it.tails(1)}
        first = it.round(77, on=True)
        it.settle()
        hand = StoreHand(address)
        for number, key in enumerate(list(hand._stored().values())):
            hand.damage("flip", "map", key, key, number)
        before = {name: it.engine.metric(name) for name in ("holdfast_pages_corrupt", "holdfast_pages_loaded")}
        again = it.round(77, on=True)
        found["corrupt"] = told(again) | {name: it.engine.metric(name) - was for name, was in before.items()}
        found["corrupt"]["same_answers"] = sum(
            one == other for one, other in zip(first["answers"], again["answers"], strict=True)
        )
        it.engine.stop()
    return found


def restore(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    with shared_memory() as place:
        it = Replicating(folder, f"lmdb://{place}?size=2GiB", given.size, num_gpu_blocks_override=2048)
        found = it.restore(given.sessions, given.tokens, 5)
        it.engine.stop()
    return found


def full(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Of one session, which does not evict its own pages: there is never room again."""
    with shared_memory() as place:
        it = Replicating(folder, f"lmdb://{place}?size=16MiB", given.size)
        found = {"pairs": it.pairs(given.pairs, 2000, extra_args=ONE_SESSION)}
        it.engine.stop()
    return found


def on_redis(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    with Redis(folder / "redis") as server:
        it = Replicating(folder, address_of([server], made_key(folder / "pages.key"), size="2GiB"), given.size)
        found: dict[str, Any] = {"pairs": it.pairs(given.pairs, 3000)}
        ending = threading.Event()

        def keep_stopping() -> None:
            while not ending.wait(GOES_S):
                server.process.send_signal(signal.SIGSTOP)
                time.sleep(STOPPED_S)
                server.process.send_signal(signal.SIGCONT)

        thread = threading.Thread(target=keep_stopping)
        thread.start()
        found["slow"] = it.pairs(max(1, given.pairs // 2), 4000, warm=True)
        ending.set()
        thread.join()
        server.kill()
        found["stopped"] = it.pairs(max(1, given.pairs // 2), 5000, warm=True)
        it.engine.stop()
    return found


KINDS = {"lmdb": lmdb, "full": full, "redis": on_redis, "restore": restore}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--size", choices=["tiny", *SIZES], default="tiny")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=3000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given.out.write_text(json.dumps(KINDS[given.kind](Path(folder), given)))


if __name__ == "__main__":
    main()
