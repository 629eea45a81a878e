"""What each step's counts become at /metrics."""

from argparse import Namespace

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from vllm_plugin.progress import COUNTED, Progress
from vllm_plugin.store.contract import Writing
from vllm_plugin.telemetry import Metrics, Stats


@pytest.fixture
def metrics():
    """As vLLM makes them, for two engines."""
    made = Metrics(
        Namespace(kv_transfer_config=Namespace()), {Counter: Counter, Gauge: Gauge, Histogram: Histogram},
        ["model_name", "engine"], {0: ["tiny", "0"], 1: ["tiny", "1"]},
    )  # fmt: skip
    yield made
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("holdfast_"):
            REGISTRY.unregister(collector)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": "tiny"} | labels)


def test_counts_of_steps_add_up(metrics):
    """Of workers in one, too; each engine's are its own."""
    mine, others = Stats(), Stats()
    mine.count("pages_sealed", 2)
    others.count("pages_sealed", 3)
    mine.aggregate(others)
    metrics.observe(mine.data, 1)
    metrics.observe(mine.data, 1)

    assert value("holdfast_pages_sealed_total", engine="1") == 10
    assert value("holdfast_pages_sealed_total", engine="0") == 0


def test_corrupt_pages_have_their_kind_and_who_found_them(metrics):
    """As labels."""
    metrics.observe({"corrupt.changed.scrub": 2})

    assert value("holdfast_pages_corrupt_total", engine="0", kind="changed", where="scrub") == 2


def test_how_far_replication_is_becomes_metrics(metrics):
    """What the store counted since the last step, which never goes down; what waits is a state."""
    told = [Writing(), Writing(3, 0.5, put=2, shed=2), Writing(1, 0.25, 4, 5, 1, 6, 7, 8)]
    progress = Progress(lambda: told[0])
    while told:
        one = Stats()
        for name, number in progress.counts():
            one.count(name, number)
        for name, number in progress.states().items():
            one.state(name, number)
        metrics.observe(one.data)
        told.pop(0)

    said = {field: value(f"holdfast_{name}_total", engine="0") for field, name in COUNTED.items()}
    assert said == {"put": 4, "known": 5, "shed": 2, "lost": 6, "fenced": 7, "failed": 8}
    assert value("holdfast_store_queued_pages", engine="0") == 1
    assert value("holdfast_store_lag_seconds", engine="0") == 0.25


def test_prefixes_have_their_length_and_their_batch(metrics):
    """What was asked for and what was there, so that a rate is one divided by the other."""
    metrics.observe({"prefix.asked.<=1k.mixed": 300, "prefix.hit.<=1k.mixed": 256})

    labels = {"engine": "0", "input": "<=1k", "batch": "mixed"}
    assert value("holdfast_prefix_tokens_total", what="asked", **labels) == 300
    assert value("holdfast_prefix_tokens_total", what="hit", **labels) == 256


def test_the_scrubbers_round_is_the_worst_workers(metrics):
    """A state: the latest counts."""
    mine, others = Stats(), Stats()
    mine.state("scrub_cycle_seconds", 2.0)
    others.state("scrub_cycle_seconds", 3.0)
    metrics.observe(mine.aggregate(others).reduce())
    assert value("holdfast_scrub_cycle_seconds", engine="0") == 3.0

    metrics.observe({"scrub_cycle_seconds": 1.0})
    assert value("holdfast_scrub_cycle_seconds", engine="0") == 1.0
