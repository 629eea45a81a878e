"""What a tree of processes has used: CPU by the scheduler's own account, memory by the pages it shares with nobody."""

from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """The process and all that descend from it, as far as they live."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in (PROC / str(one) / "task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def times_s(pids: list[int]) -> tuple[float, float]:
    """Seconds on a core so far, and seconds of waiting for one, all living threads together.

    Exact to the microsecond, unlike user and system time.
    """
    spent_ns = waited_ns = 0
    for pid in pids:
        with suppress(OSError):
            for task in (PROC / str(pid) / "task").iterdir():
                spent, waited, _ = map(int, (task / "schedstat").read_text().split())
                spent_ns, waited_ns = spent_ns + spent, waited_ns + waited
    return spent_ns / 1e9, waited_ns / 1e9


def memory_bytes(pids: list[int]) -> int:
    """Proportional set size: pages of its own, and its share of the others."""
    kib = 0
    for pid in pids:
        with suppress(OSError):
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib * 1024
