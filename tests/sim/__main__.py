"""Replay one world, or run many:

python -m tests.sim --seed 123
python -m tests.sim --worlds 10000 [--first 0] [--processes 2]
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.sim.plan import drawn
from tests.sim.run import Failure, failures, traced

SHARD = 250  # worlds that one process takes at a time


def main() -> int:
    """Run what the command line says; 1 where a world broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--failures", type=int, default=5, help="stop a shard after so many")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.seed is not None:
        return _replay(given.seed)
    begun_s = time.monotonic()
    starts = range(given.first, given.first + given.worlds, SHARD)
    shards = [(start, min(start + SHARD, given.first + given.worlds), given.failures) for start in starts]
    found = 0
    with ProcessPoolExecutor(given.processes) as pool:
        for broken in pool.map(_shard, shards):
            for failure in broken:
                found += 1
                print(failure, flush=True)
    print(f"{given.worlds} worlds, {found} broke, {time.monotonic() - begun_s:.1f} s")
    return 1 if found else 0


def _replay(seed: int) -> int:
    plan = drawn(seed)
    trace, why = traced(plan)
    print(plan, *trace, sep="\n")
    print(f"world {seed} " + ("holds" if why is None else f"broke: {why}"))
    return 0 if why is None else 1


def _shard(span: tuple[int, int, int]) -> list[Failure]:
    first, end, most = span
    return list(islice(failures(range(first, end)), most))


if __name__ == "__main__":
    sys.exit(main())
