"""The status, put together from what the halves of engines say."""

import msgspec

from vllm_plugin.progress import LAG, QUEUED
from vllm_plugin.refusals import Facts
from vllm_plugin.settings import Settings
from vllm_plugin.status import Answer, of_scheduler, of_worker, status

SCHEDULER = {
    "pages_evicted": 2, "pages_withdrawn": 1, "pages_loaded": 4, "requests_recomputed": 3, "requests_aborted": 5,
    "chains_broken": 6, "prefix_hit_tokens": 99, "prefix.asked.<=1k.alone": 300, "prefix.asked.>16k.mixed": 20000,
    "prefix.hit.<=1k.alone": 256,
}  # fmt: skip
WORKER = {
    "pages_sealed": 7, "pages_verified": 8, "pages_scrubbed": 9, "pages_saved": 10, "corrupt.changed.gate": 2,
    "corrupt.misplaced.scrub": 1, "digest_seconds": 0.5, "digest_bytes": 4096,
}  # fmt: skip


def answer(settings: Settings | None = None, facts: Facts | None = None, model: bytes = b"\x0a\xff", workers: int = 1):
    """Of an engine, as it arrives: over msgpack."""
    said = {
        "scheduler": of_scheduler(settings or Settings(), facts or Facts(), model, SCHEDULER),
        "workers": [of_worker(5, 1.25 + number, WORKER) for number in range(workers)],
    }
    return Answer(**msgspec.msgpack.decode(msgspec.msgpack.encode(said)))


def test_a_status_has_these_names():
    """Others read them: they stay."""
    assert status("0.1.0", [answer()]) == {
        "version": "0.1.0",
        "protected": True,
        "unprotected": [],
        "settings": {"verify": 1.0, "scrub": 0.003, "on_corruption": "recompute", "store": ""},
        "fingerprint": "0aff",
        "sampling_defaults": None,
        "weights": {"changes": 0, "cycle_s": None},
        "pages": {
            "resident": 5, "sealed": 7, "verified": 8, "scrubbed": 9, "evicted": 2, "withdrawn": 1, "saved": 10,
            "loaded": 4,
        },
        "store": None,
        "corrupt": [
            {"kind": "changed", "where": "gate", "pages": 2}, {"kind": "misplaced", "where": "scrub", "pages": 1},
        ],
        "requests": {"recomputed": 3, "aborted": 5},
        "chains_broken": 6,
        "scrub": {"cycle_s": 1.25},
        "digest": {"seconds": 0.5, "bytes": 4096},
        "prefix": {"asked_tokens": 20300, "hit_tokens": 256},
    }  # fmt: skip


def test_how_far_replication_is_is_told_where_there_is_a_store():
    """Of many workers what waits is added up, and the longest wait counts."""
    scheduler = of_scheduler(Settings(store="redis://a/0"), Facts(), b"m", {"pages_loaded": 4.0})
    totals = {
        "pages_saved": 5, "pages_deduplicated": 6, "pages_shed": 7, "pages_lost": 8, "pages_fenced": 9,
        "pages_missed": 10, "store_failures": 11,
    }  # fmt: skip
    workers = [of_worker(0, 0.0, totals, writing={QUEUED: 1 + n, LAG: 0.5 * n}) for n in range(2)]

    assert status("", [Answer(scheduler, workers)])["store"] == {
        "kind": "redis", "queued_pages": 3, "lag_s": 0.5, "saved": 10, "deduplicated": 12, "shed": 14, "lost": 16,
        "fenced": 18, "loaded": 4, "missed": 20, "failures": 22,
    }  # fmt: skip


def test_an_engine_that_has_done_nothing_has_a_status():
    """All names are there, with zeros."""
    nothing = Answer(of_scheduler(Settings(), Facts(), b"", {}), [of_worker(0, 0.0, {})])
    found = status("", [nothing])

    assert found.keys() == status("", [answer()]).keys()
    assert found["fingerprint"] == ""
    assert found["corrupt"] == []
    assert set(found["pages"].values()) == {0}


def test_settings_are_said_as_they_hold():
    """Everything else than the default, too."""
    said = {"verify": "sampled:0.5", "scrub": "all", "on_corruption": "abort", "store": "lmdb:///dev/shm/x"}

    assert status("", [answer(Settings.of(said))])["settings"] == said | {"verify": 0.5, "scrub": None}


def test_what_is_not_protected_is_named():
    """What is on, and not what might be."""
    said = Settings.of({"unprotected": ["v2-runner", "async-scheduling"]})
    found = status("", [answer(said, Facts(v2_runner=True))])

    assert (found["protected"], found["unprotected"]) == (False, ["v2-runner"])


def test_workers_and_engines_are_added_up_and_the_worst_state_counts():
    """One that is not protected is enough; all must be of one model, or two are named."""
    bad = answer(Settings.of({"unprotected": ["v2-runner"]}), Facts(v2_runner=True), model=b"\x01")
    found = status("", [answer(workers=2), bad, answer(), answer(model=b"")])

    assert found["pages"]["resident"] == 5 * 5
    assert found["pages"]["sealed"] == 5 * 7
    assert found["pages"]["evicted"] == 4 * 2
    assert found["corrupt"][0]["pages"] == 5 * 2
    assert found["requests"]["aborted"] == 4 * 5
    assert found["scrub"]["cycle_s"] == 2.25
    assert (found["protected"], found["unprotected"]) == (False, ["v2-runner"])
    assert found["fingerprint"] == "0aff,01"


def test_weights_are_one_engines_and_the_latest_look_counts():
    """All workers see each change."""
    halves = [answer().scheduler, answer(workers=3).workers]
    halves[1][1]["weights"] = {"changes": 2, "cycle_s": 4.5}
    halves[1][2]["weights"] = {"changes": 1, "cycle_s": 9.0}

    assert status("", [Answer(*halves)])["weights"] == {"changes": 2, "cycle_s": 9.0}
