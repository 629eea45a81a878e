"""Rounds: every load on every peer, in a new random order each time."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from loadtests.bench.account import memory_bytes, tree
from loadtests.bench.load import Job, Seen
from loadtests.bench.peers import Peer, pinned

JOB_S_MAX = 180.0  # beyond what the job is to take
CALM_S = 3.0  # after the streams have ended, before memory is looked at again


@dataclass(frozen=True)
class Load:
    """One kind of work. unit: what is counted; job: the work, for a peer that carries all of it.

    looks: how many times it is measured in a round, each time on every peer; where little is done, much of what is
    measured is what the neighbours did.
    """

    name: str
    unit: str
    job: Job
    looks: int = 1

    def quick(self) -> "Load":
        """The same for a moment, to see that all works; not to be compared."""
        fewer = max(1, self.job.connections // 10)
        job = msgspec.structs.replace(self.job, connections=fewer, open_s=0.2, window_s=0.5)
        return Load(self.name, self.unit, job, min(self.looks, 2))


LOADS = (
    Load("plain", "requests", Job(0, stream=False, connections=64, window_s=2), looks=2),
    Load("plain, 100/s", "requests", Job(0, stream=False, connections=50, every_s=0.5, window_s=2.5)),
    Load("paced", "chunks", Job(0, connections=100, every_s=0.05, open_s=0.5, window_s=2.5), looks=2),
    Load("dense", "chunks", Job(0, connections=200, every_s=0.02, open_s=0.5, window_s=2)),
)
HELD = Job(0, connections=5000, every_s=2.0, open_s=8, window_s=2.5)


class Memory(msgspec.Struct):
    """Bytes of a gateway: before its first held stream, with all of them open, after they ended; and after a rest."""

    streams: int
    idle: int
    full: int
    after: int
    failed: int

    @property
    def kb_per_stream(self) -> float:
        return (self.full - self.idle) / self.streams / 1e3


@dataclass
class Results:
    """seen[peer][load]: one for each look, in their order. memory[peer]: one for each time the streams were held.

    commands[peer][load]: of those that ask a Redis, how many commands, in all looks. versions: of gateways of others.
    """

    seen: dict[str, dict[str, list[Seen]]] = field(default_factory=dict)
    memory: dict[str, list[Memory]] = field(default_factory=dict)
    commands: dict[str, dict[str, int]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class Bench:
    """Does jobs on peers. core: where the upstream and the clients run. say: told of what goes wrong, and how far."""

    def __init__(self, peers: list[Peer], core: int, ids: bool, say: Callable[[str], None]) -> None:
        self._peers, self._core, self._ids, self._say = peers, core, ids, say
        self.results = Results({peer.name: {} for peer in peers})
        self.results.versions = {peer.name: peer.version for peer in peers if peer.version}

    def rounds(self, loads: list[Load], count: int, rng: random.Random) -> None:
        """Measure all, `count` times over."""
        for number in range(count):
            begun = time.monotonic()
            for peer in self._peers if number else ():
                peer.again()
            for load in (one for one in loads for _ in range(one.looks)):
                taking_part = [peer for peer in self._peers if peer.recipe.takes_part(load.name, number)]
                for peer in rng.sample(taking_part, len(taking_part)):
                    seen = self._do(peer, load.name, load.job)
                    self.results.seen[peer.name].setdefault(load.name, []).append(seen)
            self._say(f"round {number + 1} of {count}: {time.monotonic() - begun:.0f} s")

    def hold(self, job: Job, calm_s: float = CALM_S) -> None:
        """Hold streams open and weigh them; more than once, where it is asked whether anything stays."""
        for peer in (one for one in self._peers if one.recipe.holds):
            pids = tree(peer.pid)
            for _ in range(peer.recipe.holds):
                idle = memory_bytes(pids)
                seen = self._do(peer, "held", job)
                time.sleep(calm_s)
                held = Memory(seen.open, idle, seen.memory_bytes, memory_bytes(pids), seen.failed)
                self.results.memory.setdefault(peer.name, []).append(held)
            self._say(f"{job.connections} streams held: {peer.name}")

    def _do(self, peer: Peer, what: str, job: Job) -> Seen:
        connections = max(1, round(job.connections * peer.recipe.share))
        mine = msgspec.structs.replace(
            job, port=peer.place.port, pid=peer.pid, headers=peer.place.headers, ids=self._ids, connections=connections
        )
        asked = peer.place.commands
        before = asked() if asked is not None else 0
        seen = done(mine, self._core)
        if asked is not None:
            count = self.results.commands.setdefault(peer.name, {})
            count[what] = count.get(what, 0) + asked() - before
        if seen.failed:
            self._say(f"{peer.name}, {what}: {seen.failed} of {seen.answers} failed: {seen.faults}")
        return seen


def done(job: Job, core: int) -> Seen:
    """Have a process of its own do a job."""
    command = [sys.executable, "-m", "loadtests.bench.load", msgspec.json.encode(job).decode()]
    limit_s = job.open_s + job.window_s + JOB_S_MAX
    with pinned(core):
        ran = subprocess.run(
            command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, timeout=limit_s
        )
    return msgspec.json.decode(ran.stdout, type=Seen)
