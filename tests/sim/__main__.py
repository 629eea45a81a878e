"""Replay one world, or run many:

python -m tests.sim --seed 123
python -m tests.sim --worlds 10000 [--first 0] [--processes 2]
"""

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.sim.plan import drawn
from tests.sim.run import Failure, digest, failures, traced

SHARD = 250  # worlds that one process takes at a time
FAILURES_MAX = 5  # of one shard: more of them say nothing new


def main() -> int:
    """Run what the command line says; 1 where a world broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="the one world to replay, step by step")
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--digest", action="store_true", help="only a checksum of all that happens in the worlds")
    given = parser.parse_args()
    end = given.first + given.worlds
    if given.seed is not None:
        return _replay(given.seed)
    if given.digest:
        print(digest(range(given.first, end)))
        return 0
    begun_s, found, seen = time.monotonic(), 0, Counter[str]()
    with ProcessPoolExecutor(given.processes) as pool:
        shards = [range(start, min(start + SHARD, end)) for start in range(given.first, end, SHARD)]
        for broken, sights in pool.map(shard, shards):
            found += len(broken)
            seen += sights
            if broken:
                print(*broken, sep="\n", flush=True)
    print(*(f"{count:8} {what}" for what, count in sorted(seen.items())), sep="\n")
    print(f"{given.worlds} worlds, {found} broke, {time.monotonic() - begun_s:.1f} s")
    return 1 if found else 0


def shard(seeds: range) -> tuple[list[Failure], "Counter[str]"]:
    """Run some worlds; give those that broke, and what was seen in the others."""
    seen: Counter[str] = Counter()
    return list(islice(failures(seeds, seen), FAILURES_MAX)), seen


def _replay(seed: int) -> int:
    plan = drawn(seed)
    trace, why = traced(plan)
    print(plan, *trace, sep="\n")
    print(f"world {seed} " + ("holds" if why is None else f"broke: {why}"))
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main())
