"""How fast a session's pages go to a page store and back into an engine's memory, beside copies."""

from statistics import median
from typing import Any

from tests.prove.state import keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "store-speed"
MIB, ROUNDS = 1024, 5
LIMIT_S = 900.0
LMDB_GOAL = 0.5  # of the speed of a copy
RESEARCH_S_PER_GB = 10.0
WORDS = {
    "copy": "a plain copy, one thread",
    "map copy": "a plain copy out of LMDB's map, page by page, one thread",
    "lmdb load": "LMDB to engine",
    "lmdb, one thread load": "LMDB to engine, one thread",
    "lmdb save": "engine to LMDB",
    "redis load": "Redis to engine",
    "redis save": "engine to Redis",
}
COPIES = ("copy", "map copy")


def run(mib: int = MIB) -> None:
    """A session of so many MiB."""
    if results().get(NAME, {"mib": 0})["mib"] >= mib:
        return
    say(f"{NAME}: {mib} MiB, {ROUNDS} rounds for each size of page")
    found = measured(
        "tests.vllm_plugin.store.speed", "--mib", str(mib), "--rounds", str(ROUNDS), limit_s=LIMIT_S
    )  # fmt: skip
    keep(NAME, {"on": provenance(), "mib": mib, **found})


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured. The rest is a goal of nobody, and reported."""
    if NAME not in done:
        return {}
    found = done[NAME]
    claims = {}
    for size in found["pages"]:
        share, of_map = _of(found, size, "lmdb load", "copy"), _of(found, size, "lmdb load", "map copy")
        claims[
            f"{found['mib']} MiB of a session come from LMDB into an engine's paged memory, verified there, at "
            f"{share:.2f} of the speed of a copy (pages of {_size(size)}; goal: {LMDB_GOAL:g}; of a copy out of LMDB's "
            f"map: {of_map:.2f})"
        ] = share >= LMDB_GOAL and found["mib"] >= MIB
    slowest = max(_s_per_gb(found, size, "redis load") for size in found["pages"])
    claims[f"and from Redis in {slowest:.1f} s per GB at most; the research asked for {RESEARCH_S_PER_GB:g}"] = (
        slowest <= RESEARCH_S_PER_GB
    )
    first, later = (found["first_writes"][f"{turn}, at hand"] for turn in ("first", "later"))
    claims[f"the first writes to a new store that is at hand take {first / later:.2f} of the time of later ones"] = (
        first < 2 * later
    )
    return claims


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    found = done[NAME]
    writes = found["first_writes"]
    speeds = {name: writes["bytes"] / seconds / 1e9 for name, seconds in writes.items() if name != "bytes"}
    return [
        "## Speed",
        "",
        f"{found['on']}. A session of {found['mib']} MiB ({found['redis_bytes'] >> 20} MiB on Redis, a process "
        f"of this machine) goes from paged memory, laid out as vLLM's on the CPU, to a store, and comes back: fetched, "
        "copied into its blocks, and verified there by its digest, page by page; on Redis its MAC is verified, too. "
        f"Up to {found['threads']} threads load, where there are as many cores. Rounds are interleaved; medians, and "
        "what is lowest and highest of the ratios to the copies of the same round. A plain copy is from memory to "
        "memory, in large pieces. One out of LMDB's map is of the same pages, to memory that lies in one piece: they "
        "are found, and nothing in them is looked at. Sealing is not in it: it is done for every page, stored or not.",
        "",
        "| pages | what | GB/s | s per GB | of the copy's speed | of that out of LMDB's map |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(found, size, what) for size in found["pages"] for what in WORDS),
        "",
        f"A new store, {writes['bytes'] >> 20} MiB written twice: "
        + "; ".join(f"{name}: {speed:.1f} GB/s" for name, speed in speeds.items())
        + ". «At hand»: all of the map was faulted in before, as is done in the background when an engine starts.",
        "",
    ]


def _bytes(found: dict[str, Any], what: str) -> int:
    return int(found["redis_bytes" if what.startswith("redis") else "bytes"])


def _ratios(found: dict[str, Any], size: str, what: str, to: str) -> list[float]:
    seconds = found["pages"][size]["seconds"]
    part = _bytes(found, what) / found["bytes"]
    return [copy_s * part / one_s for copy_s, one_s in zip(seconds[to], seconds[what], strict=True)]


def _of(found: dict[str, Any], size: str, what: str, to: str) -> float:
    return median(_ratios(found, size, what, to))


def _s_per_gb(found: dict[str, Any], size: str, what: str) -> float:
    return median(found["pages"][size]["seconds"][what]) / _bytes(found, what) * 1e9


def _row(found: dict[str, Any], size: str, what: str) -> str:
    s_per_gb = _s_per_gb(found, size, what)
    beside = " | ".join(_spread(found, size, what, to) for to in COPIES)
    return f"| {_size(size)} | {WORDS[what]} | {1 / s_per_gb:.2f} | {s_per_gb:.2f} | {beside} |"


def _spread(found: dict[str, Any], size: str, what: str, to: str) -> str:
    ratios = _ratios(found, size, what, to)
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if what != to else "1"


def _size(page_bytes: str) -> str:
    return f"{int(page_bytes) >> 10} KiB" if int(page_bytes) < 2**20 else f"{int(page_bytes) >> 20} MiB"
