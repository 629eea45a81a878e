"""Valid pages in the wrong place of a page store: another session's, another tenant's, an older one."""

from typing import Any

from tests.prove.state import keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "store-swaps"
LIMIT_S = 180.0


def run() -> None:
    """All of them, on both stores."""
    if NAME in results():
        return
    say(NAME)
    cases: Any = measured("tests.vllm_plugin.store.swaps", limit_s=LIMIT_S)
    keep(NAME, {"on": provenance(), "cases": cases})


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    cases = done[NAME]["cases"]
    kinds = {one["case"].partition(":")[0] for one in cases}
    return {
        f"{len(cases)} swaps of {len(kinds)} kinds, on LMDB and Redis: another session's valid page under this one's "
        "key, another position, another tenant's salt, an older version, a page cut short: refused each time": all(
            one["refused"] for one in cases
        ),
        "who comes next is not given it either; the page beside it is loaded all the same": all(
            one["again_refused"] for one in cases
        ),
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    cases = done[NAME]["cases"]
    names = list(dict.fromkeys(one["case"] for one in cases))
    return [
        "## Pages in the wrong place",
        "",
        f"{done[NAME]['on']}. Everything put there is a page that an engine of the same model sealed. On LMDB whoever "
        "puts it there makes entries as the store does; on Redis they have all but the key. «Changed»: fetched, "
        "written to its block, and found there not to be the page that the scheduler named. «Absent»: not so "
        "much as fetched, or its seal did not hold. An older version, whole, is refused on Redis by who saw the newer "
        "one; to others, and on LMDB, it is what it says: a page of the same model and the same tokens.",
        "",
        "| put in its place | LMDB | Redis |",
        "| --- | --- | --- |",
        *(f"| {name} | {_as(cases, name, 'LMDB')} | {_as(cases, name, 'Redis')} |" for name in names),
        "",
    ]


def _as(cases: list[dict[str, Any]], name: str, store: str) -> str:
    return next((one["as"] for one in cases if (one["case"], one["store"]) == (name, store)), "")
