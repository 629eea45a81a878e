"""kill -9 of engines while they write to a page store, and of the store's servers."""

from typing import Any

from tests.prove.state import SEED, keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "store-kills"
COUNT, REDIS_SHARE = 200, 0.12
EACH_S_MAX, START_S_MAX = 5.0, 120.0
ROOM_KEPT_MIN = 0.95  # of the pages there was room for: where they come to lie makes a little difference


def run(count: int = COUNT) -> None:
    """So many on LMDB, and some on Redis."""
    if results().get(NAME, {"count": 0})["count"] >= count:
        return
    on_redis = max(4, round(count * REDIS_SHARE))
    say(f"{NAME}: {count} on LMDB, {on_redis} on Redis")
    said = ["--kills", str(count), "--redis", str(on_redis), "--seed", str(SEED)]
    found = measured("tests.vllm_plugin.store.kills", *said, limit_s=START_S_MAX + EACH_S_MAX * count)
    keep(NAME, {"on": provenance(), "count": count, **found})


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    lmdb, redis = done[NAME]["lmdb"], done[NAME]["redis"]
    before, after = lmdb["before"], lmdb["after"]
    room = after["room"] / before["room"]
    return {
        f"{lmdb['kills']} kills of engines that write to one store in shared memory, {lmdb['inside']} of them within a "
        f"transaction, by seed; as many as four at once": lmdb["kills"] >= COUNT and lmdb["inside"] > 0,
        f"after each, somebody new reads and writes, all others go on, the tables agree, and every page is what its "
        f"digest says ({lmdb['pages_seen']:,} looked at)": not lmdb["wrong"] and lmdb["pages_seen"] > lmdb["looks"],
        f"nothing leaks: no file, no block, no reader's slot, no lock; there is room for {room:.0%} of the pages that "
        "there was room for": room >= ROOM_KEPT_MIN and after["alone"] and after["readers"] <= before["readers"]
        and all(after[what] == before[what] for what in ("files", "blocks")) and after["used_bytes"] <= 2**14,
        f"{lmdb['makers']} kills of engines while they make a store: the next one makes it whole": lmdb["makers"] > 0,
        f"on Redis {redis['kills']} kills of engines and {redis['servers_killed']} of servers: every page is right or "
        f"absent ({redis['pages_seen']:,} looked at), nothing half written stays, bytes are counted right":
            not redis["wrong"] and redis["kills"] > 0 and redis["servers_killed"] > 0 and redis["pages_seen"] > 0,
    }  # fmt: skip


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    lmdb, redis = done[NAME]["lmdb"], done[NAME]["redis"]
    return [
        "## kill -9 of those who write",
        "",
        f"{done[NAME]['on']}. Each process is what a store sees of an engine: paged memory and the plugin's exchange, "
        "which seals pages, writes, loads and verifies them, puts wrong ones aside, sweeps and erases, all on one "
        "store that is always full. Four live at a time. Half of them die at some moment, from outside; half at "
        "some number of what they ask of LMDB within a transaction, its commit and its zeroing included. After each "
        "time the rest is stopped, while a new process looks at every table and every page; then it must go on.",
        "",
        "| | kills | looked at | pages, all right | longest to open | to have written |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {name} | {one['kills'] + one.get('servers_killed', 0)} | {one['looks']} times | {one['pages_seen']:,} | "
          f"{one['opened_s_max']:.2f} s | {one['wrote_s_max']:.2f} s |"
          for name, one in (("LMDB", lmdb), ("Redis, two servers, two copies", redis))),
        "",
    ]  # fmt: skip
