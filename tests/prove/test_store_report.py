"""The report on the page store says no where it should."""

import copy
from typing import Any

import pytest

from tests.prove import store_kills, store_speed, store_swaps, store_trace

SECONDS = {"copy": [0.1, 0.1], "map copy": [0.12, 0.12], "lmdb load": [0.15, 0.15], "lmdb, one thread load": [0.3, 0.3],
           "lmdb save": [0.4, 0.4], "redis load": [0.5, 0.5], "redis save": [0.5, 0.5]}  # fmt: skip
LEFT = {"room": 100, "files": ["data.mdb"], "blocks": 8, "readers": 1, "used_bytes": 0}
LOOKED = {"wrong": [], "looks": 9, "pages_seen": 900, "opened_s_max": 0.1, "wrote_s_max": 0.1}
FINE: dict[str, Any] = {
    store_speed.NAME: {
        "on": "a day", "mib": 1024, "bytes": 2**30, "redis_bytes": 2**28, "threads": 4,
        "pages": {"262144": {"seconds": SECONDS}, "2097152": {"seconds": SECONDS}},
        "first_writes": {"bytes": 2**27, "first, at hand": 0.1, "later, at hand": 0.1, "first, not at hand": 0.9},
    },
    store_kills.NAME: {
        "on": "a day", "count": 200,
        "lmdb": {**LOOKED, "kills": 200, "inside": 90, "makers": 9, "before": LEFT, "after": {**LEFT, "alone": True}},
        "redis": {**LOOKED, "kills": 18, "servers_killed": 6},
    },
    store_trace.NAME: {
        "on": "a day", "trace": "one", "requests": 9, "sessions": 3, "block_tokens": 512, "asked": 100,
        "of_sessions": 60, "stored": 40, "unique": 40, "hit": 50, "hit_possible": 50, "bounded_requests": 5,
        "bounded_asked": 60, "bounded_hit": 30,
        "bounded": [{"share": 0.1, "pages_max": 4, "hit": 9, "lru_hit": 8, "shed": 0}],
    },
    store_swaps.NAME: {
        "on": "a day",
        "cases": [{"store": "LMDB", "case": "a page: whole", "refused": True, "again_refused": True, "as": "changed"}],
    },
}  # fmt: skip
PARTS = (store_speed, store_kills, store_trace, store_swaps)


def test_everything_is_said_where_everything_was_seen(tmp_path, monkeypatch):
    """And nothing of what was not."""
    monkeypatch.setattr(store_trace, "EVIDENCE", tmp_path)

    assert all(good for part in PARTS for good in part.verdicts(FINE).values())
    assert all(part.lines(FINE) for part in PARTS)
    assert (tmp_path / "store.svg").read_text().startswith("<svg")
    assert [part.verdicts({}) for part in PARTS] == [{}] * 4
    assert [part.lines({}) for part in PARTS] == [[]] * 4


def test_a_load_is_told_beside_both_copies():
    """The goal is of the plain one; of the other one a load may well be quicker."""
    (claim, *_), lines = store_speed.verdicts(FINE), store_speed.lines(FINE)

    assert "at 0.67 of the speed of a copy" in claim
    assert "of a copy out of LMDB's map: 0.80" in claim
    assert "| 256 KiB | LMDB to engine | 7.16 | 0.14 | 0.67 (0.67 to 0.67) | 0.80 (0.80 to 0.80) |" in lines
    assert any("out of LMDB's map" in line and line.endswith("| 0.83 (0.83 to 0.83) | 1 |") for line in lines)


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        ("store-speed pages 2097152 seconds", {**SECONDS, "lmdb load": [0.25, 0.25]}, "pages of 2 MiB"),
        ("store-speed pages 262144 seconds", {**SECONDS, "redis load": [9.0, 9.0]}, "Redis"),
        ("store-speed mib", 64, "paged memory"),
        ("store-speed first_writes", {"first, at hand": 0.5, "later, at hand": 0.1}, "first writes"),
        ("store-kills lmdb kills", 20, "kills of engines that write"),
        ("store-kills lmdb wrong", ["a page"], "somebody new"),
        ("store-kills lmdb after room", 80, "nothing leaks"),
        ("store-kills lmdb after readers", 3, "nothing leaks"),
        ("store-kills lmdb after alone", False, "nothing leaks"),
        ("store-kills lmdb after files", ["data.mdb", "another"], "nothing leaks"),
        ("store-kills redis wrong", ["a page"], "on Redis"),
        ("store-trace stored", 41, "keeps each page once"),
        ("store-trace hit", 49, "asked for again"),
        ("store-swaps cases", [{"case": "a", "refused": False, "again_refused": True}], "refused each time"),
        ("store-swaps cases", [{"case": "a", "refused": True, "again_refused": False}], "who comes next"),
    ],
)
def test_what_was_not_seen_is_not_claimed(path, value, claim):
    done = copy.deepcopy(FINE)
    *way, last = path.split()
    place = done
    for name in way:
        place = place[name]
    place[last] = value

    verdicts = {said: good for part in PARTS for said, good in part.verdicts(done).items()}

    refused = [said for said, good in verdicts.items() if not good]
    assert refused
    assert all(claim in said for said in refused)
