"""kill -9 of engines while they write to one store: what is left is looked at after each time by somebody new.

    .venv-vllm/bin/python -m tests.vllm_plugin.store.kills OUT [--kills 200] [--redis 24] [--seed 1]

Some die whenever it is, the others at some number of what they ask of LMDB while they write: in any place of it. Writes
its JSON to OUT.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.vllm_plugin.store import pages as whole
from tests.vllm_plugin.store.mortals import Mortal, engine, memory, newcomer, warm
from tests.vllm_plugin.store.paged import Paged
from tests.vllm_plugin.store.redis_servers import Redis, address_of, made_key
from vllm_plugin.page import Page
from vllm_plugin.store.directory import Directory
from vllm_plugin.store.redis_server import PREFIX

SIZE = "8MiB"
AT_ONCE, DEADLY_OPS, OUTSIDE_S_MAX = 4, 1500, 0.06
LIMIT_S = 60.0  # for whatever is waited for: far more than it takes, so that a slow machine proves the same
MAKERS = 5  # that are killed while they make a store, of each hundred
COUNTED = """
local sum, P = 0, ARGV[1]
for _, size in ipairs(redis.call('HVALS', P .. 'sizes')) do sum = sum + size end
return {sum, tonumber(redis.call('GET', P .. 'bytes') or 0)}
"""


def main() -> None:
    """Kill, and write down what was seen."""
    parser = argparse.ArgumentParser(description="Engines that are killed while they write to one store.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--redis", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warm()
    found: dict[str, Any] = {"lmdb": on_lmdb(given.kills, given.seed)}
    if given.redis:
        found["redis"] = on_redis(given.redis, given.seed)
    given.out.write_text(json.dumps(found))


def on_lmdb(kills: int, seed: int) -> dict[str, Any]:
    """All engines share one store, which is full all the time."""
    top = Path(tempfile.mkdtemp(prefix="holdfast-kills-", dir="/dev/shm"))
    url, rng, world = f"lmdb://{top}/store?size={SIZE}", random.Random(seed), World(seed)
    try:
        asked(url, lambda store: {"room": room(store)})  # where everything was free, there is room for some more
        before = asked(url, lambda store: {"room": room(store), **state(store, top)})
        while world.kills < kills:
            world.start(url, rng, deadly=True)
            victims = rng.sample(world.alive, rng.choice((1, 2, 3, AT_ONCE)))
            world.kill([one for one in victims if one not in world.deadly], rng.uniform(0, OUTSIDE_S_MAX))
            world.await_deaths(victims)
            world.look(url, check_lmdb)
            say(world.kills, kills, "of engines on LMDB")
        world.end()
        after = asked(url, lambda store: {"room": room(store), **state(store, top)})
        with Directory(top / "store", 0).alone() as alone:
            after["alone"] = alone
        return {**world.told(), "before": before, "after": after, "makers": killed_makers(top, rng, kills)}
    finally:
        world.end()
        shutil.rmtree(top)


def on_redis(kills: int, seed: int) -> dict[str, Any]:
    """Each page on both of two servers. Every fourth time it is a server that dies; it comes back empty."""
    top = Path(tempfile.mkdtemp(prefix="holdfast-kills-"))
    rng, world, servers_killed = random.Random(seed + 1), World(seed + 1000), 0
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, top)
        stack.callback(world.end)
        servers = [stack.enter_context(Redis(top / name)) for name in "ab"]
        url = address_of(servers, made_key(top / "key"), copies=2, size=SIZE)
        while world.kills + servers_killed < kills:
            world.start(url, rng, deadly=False)
            if (world.kills + servers_killed) % 4 == 3:
                server = rng.choice(servers)
                time.sleep(rng.uniform(0, OUTSIDE_S_MAX))
                server.kill()
                servers_killed += 1
                world.look(url, lambda store: {"pages": store.stats().pages})
                server.start()
            else:
                victims = [rng.choice(world.alive)]
                world.kill(victims, rng.uniform(0, OUTSIDE_S_MAX))
                world.await_deaths(victims)
                world.look(url, lambda store: check_redis(store, servers))
            say(world.kills + servers_killed, kills, "on Redis")
    return {**world.told(), "servers_killed": servers_killed}


class World:
    """Engines that live, and what was seen of those that do not."""

    def __init__(self, seed: int) -> None:
        self.alive: list[Mortal] = []
        self.deadly: set[Mortal] = set()
        self.kills = self._inside = 0
        self._seed, self._wrong, self._looks = seed, [], []

    def start(self, url: str, rng: random.Random, *, deadly: bool) -> None:
        """As many as are to be there, each of which has used the store."""
        while len(self.alive) < AT_ONCE:
            self._seed += 1
            at = rng.randrange(DEADLY_OPS) if deadly and rng.random() < 0.5 else None
            one = Mortal(lambda tells, seed=self._seed, at=at: engine(url, seed, tells, at))
            if at is None:
                assert one.hears(LIMIT_S), "it does not begin"
            else:
                self.deadly.add(one)
            self.alive.append(one)

    def kill(self, victims: list[Mortal], after_s: float) -> None:
        """All at once, at some moment."""
        time.sleep(after_s)
        for one in victims:
            one.signal(signal.SIGKILL)

    def await_deaths(self, victims: list[Mortal]) -> None:
        """Of those that kill themselves too."""
        for one in victims:
            until_s = time.monotonic() + LIMIT_S
            while one in self.deadly and one.hears(1.0) and one.dies_not() and time.monotonic() < until_s:
                pass
            self._inside += one in self.deadly and not one.dies_not()
            one.signal(signal.SIGKILL)
            self.alive.remove(one)
            self._bury(one)

    def look(self, url: str, check: Any) -> None:
        """Somebody new does; meanwhile nobody changes anything. Then all others go on."""
        with Newcomer(url, check) as new:
            for one in self.alive:
                one.stop()
            self._looks.append(new.found())
            for one in self.alive:
                one.signal(signal.SIGCONT)
            for one in list(self.alive):
                if one.goes_on(LIMIT_S):
                    continue
                self.alive.remove(one)
                if one in self.deadly and not one.dies_not():
                    self._inside += 1
                else:
                    self._wrong.append(f"process {one.pid} did not go on")
                    one.signal(signal.SIGKILL)
                self._bury(one)

    def end(self) -> None:
        """All of them."""
        for one in self.alive:
            one.signal(signal.SIGKILL)
            self._bury(one, counts=False)
        self.alive.clear()

    def told(self) -> dict[str, Any]:
        return {
            "kills": self.kills, "inside": self._inside, "wrong": self._wrong, "looks": len(self._looks),
            "pages_seen": sum(one["pages"] for one in self._looks),
            "opened_s_max": max(one["opened_s"] for one in self._looks),
            "wrote_s_max": max(one["wrote_s"] for one in self._looks),
        }  # fmt: skip

    def _bury(self, one: Mortal, *, counts: bool = True) -> None:
        how = one.bury()
        self.kills += counts and how == signal.SIGKILL
        self.deadly.discard(one)
        if one.wrong or how != signal.SIGKILL:
            self._wrong.append(one.wrong or f"ended by {how}")


class Newcomer:
    """A process that opens the store, writes to it, and looks at it when it is told to."""

    def __init__(self, url: str, check: Any) -> None:
        self._goes_on, go = os.pipe()
        self._go = go
        self._one = Mortal(lambda tells: newcomer(url, tells, self._goes_on, check))
        assert self._one.hears(LIMIT_S), "it does not begin"
        self._fail()

    def __enter__(self) -> "Newcomer":
        return self

    def found(self) -> dict[str, Any]:
        os.write(self._go, b"1")
        while not self._one.said.endswith(b"}}"):
            assert self._one.hears(LIMIT_S), "it does not answer"
            self._fail()
        return json.loads(self._one.said.partition(b"{")[2][:-1])

    def __exit__(self, *_: object) -> None:
        os.write(self._go, b"1")
        self._one.bury()
        os.close(self._go)
        os.close(self._goes_on)

    def _fail(self) -> None:
        assert not self._one.wrong, self._one.wrong


def asked(url: str, check: Any) -> dict[str, Any]:
    """What somebody new finds."""
    with Newcomer(url, check) as new:
        return new.found()


def check_lmdb(store: Any) -> dict[str, Any]:
    """Its tables agree, and each page is what its manifest says. Raises AssertionError."""
    world = Paged(store, [memory()], "block ...")
    return {"pages": whole.check_whole(store, lambda manifest, payload: sealed(world, manifest, payload))}


def sealed(world: Paged, manifest: Any, payload: Any) -> bool:
    page = Page(0, 1, 0, manifest.chain, manifest.position)
    return world.digests.of(page, world.pages.packed(payload).sums([0])[0]) == manifest.digest


def check_redis(store: Any, servers: list[Redis]) -> dict[str, Any]:
    """Every page is right or absent, what is half written goes by itself, and what is counted is there."""
    keys = [key for server in store._servers for some in server.all_keys() for key in some]
    world, pages = Paged(store, [memory()], "block ..."), 0
    for first in range(0, len(keys), 64):
        with store.read(keys[first : first + 64]) as found:
            for page in filter(None, found):
                assert sealed(world, page.manifest, page.payload), "a page is wrong"
                pages += 1
    assert store.stats().damaged == 0, "a page was wrong"
    for server in servers:
        halves = server.ask("KEYS", PREFIX + b"t:*")
        assert -1 not in [server.ask("PTTL", name) for name in halves], "half a page stays for ever"
        sizes, counted = server.ask("EVAL", COUNTED, 0, PREFIX)
        assert sizes == counted, f"{counted} bytes are counted, and {sizes} are there"
    return {"pages": pages}


def state(store: Any, top: Path) -> dict[str, Any]:
    """What there is of it in shared memory, when it is empty."""
    store._tidy()
    store.erase_all(LIMIT_S)
    with store._tables.reading() as txn:
        used = store._tables.used_bytes(txn)
    readers = [line for line in store._tables.env.readers().splitlines()[1:] if line.split()]
    files = sorted(path for path in top.rglob("*") if path.is_file())
    return {
        "used_bytes": used, "readers": len(readers), "files": [path.name for path in files],
        "blocks": sum(path.stat().st_blocks for path in files),
    }  # fmt: skip


def room(store: Any) -> int:
    """How many pages it takes, once it is empty, until one is shed."""
    store.erase_all(LIMIT_S)
    world, number = Paged(store, [memory()], "block ...", session="one"), 0
    while store.put(world.copies([Page(0, 1, 0, b"room %d" % number, 0)]), LIMIT_S):
        number += 1
    return number


def killed_makers(top: Path, rng: random.Random, kills: int) -> int:
    """Engines that are killed while they make a store: the next one makes it whole. How many."""
    makers = max(1, MAKERS * kills // 100)
    for number in range(makers):
        url = f"lmdb://{top}/made {number}?size=64MiB"
        one = Mortal(lambda tells, url=url: engine(url, 0, tells))
        time.sleep(rng.uniform(0, OUTSIDE_S_MAX))
        one.signal(signal.SIGKILL)
        one.bury()
        assert asked(url, check_lmdb)["pages"] >= 1
    return makers


def say(done: int, of: int, what: str) -> None:
    """How far it is."""
    print(f"killed {done} of {of} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
