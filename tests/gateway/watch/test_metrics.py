"""What is counted is what is exposed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway.watch.histogram import BatchHistogram
from gateway.watch.metrics import Metrics
from guards.refusal import Ending, Reason


def samples(metrics):
    """All samples by name and labels, read as Prometheus reads them."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


@pytest.fixture
def metrics():
    return Metrics()


def test_a_process_tells_what_it_uses(metrics):
    """By the names that everybody's dashboards know."""
    assert samples(metrics)[("process_resident_memory_bytes",)] > 1 << 20
    assert samples(Metrics("1.2"))[("holdfast_build_info", "1.2")] == 1


def test_counters_count_under_their_labels(metrics):
    """Each fact is counted once, under its own labels."""
    metrics.request_ended("tiny", Ending.FINISHED)
    metrics.request_ended("tiny", Ending.FINISHED)
    metrics.request_ended("tiny", Ending.BUDGET)
    metrics.tokens("tiny", prompt=10, completion=20)
    metrics.tokens("tiny", recomputed=3)
    metrics.refused(Reason.HELD)
    metrics.leg_ended("10.0.0.1:8000", "lost")

    seen = samples(metrics)

    assert seen["holdfast_requests_total", "finished", "tiny"] == 2
    assert seen["holdfast_requests_total", "budget_exceeded", "tiny"] == 1
    assert seen["holdfast_tokens_total", "prompt", "tiny"] == 10
    assert seen["holdfast_tokens_total", "completion", "tiny"] == 20
    assert seen["holdfast_tokens_total", "recomputed", "tiny"] == 3
    assert seen["holdfast_refusals_total", "budget_held"] == 1
    assert seen["holdfast_legs_total", "10.0.0.1:8000", "lost"] == 1


def test_gauges_go_up_and_down(metrics):
    """Open holds and streams are what was opened less what was closed."""
    metrics.hold_opened()
    metrics.hold_opened()
    metrics.hold_settled()
    metrics.request_opened()
    metrics.request_ended("tiny", Ending.FINISHED)

    seen = samples(metrics)

    assert (seen["holdfast_holds",], seen["holdfast_requests_in_flight",]) == (1, 0)


def test_durations_are_in_seconds_in_their_buckets(metrics):
    """A failover, a first token and the gateway's own time are each observed once, where they belong."""
    metrics.failed_over("tiny", "connection", gap_s=0.4)
    metrics.first_token("tiny", after_s=0.3)
    metrics.added_latency(0.004)

    seen = samples(metrics)

    assert seen["holdfast_failovers_total", "connection", "tiny"] == 1
    assert seen["holdfast_failover_gap_seconds_bucket", "0.3"] == 0
    assert seen["holdfast_failover_gap_seconds_bucket", "0.5"] == 1
    assert seen["holdfast_time_to_first_token_seconds_bucket", "0.35", "tiny"] == 1
    assert seen["holdfast_added_latency_seconds_sum",] == pytest.approx(0.004)


def test_inter_token_gaps_add_up_over_batches(metrics):
    """Gaps that come in batches are counted like gaps that come one by one."""
    metrics.inter_token("tiny", [0.004, 0.005, 0.006])
    metrics.inter_token("tiny", iter([9.0]))
    metrics.inter_token("other", [])

    seen = samples(metrics)

    assert seen["holdfast_inter_token_seconds_bucket", "0.0025", "tiny"] == 0
    assert seen["holdfast_inter_token_seconds_bucket", "0.005", "tiny"] == 2
    assert seen["holdfast_inter_token_seconds_bucket", "5.0", "tiny"] == 3
    assert seen["holdfast_inter_token_seconds_bucket", "+Inf", "tiny"] == 4
    assert seen["holdfast_inter_token_seconds_count", "tiny"] == 4
    assert seen["holdfast_inter_token_seconds_sum", "tiny"] == pytest.approx(9.015)


@given(st.lists(st.floats(min_value=0, max_value=10)))
def test_a_batch_histogram_is_a_histogram(values):
    """Each bucket holds exactly the values up to its bound, and the last one all of them."""
    registry, bounds = CollectorRegistry(), (0.5, 1.0, 5.0)
    histogram = BatchHistogram("gap", "", "model", bounds)
    registry.register(histogram)

    histogram.observe("tiny", values)

    for bound, name in [*((b, str(b)) for b in bounds), (math.inf, "+Inf")]:
        counted = registry.get_sample_value("gap_bucket", {"model": "tiny", "le": name})
        assert counted == sum(value <= bound for value in values)


def test_metrics_are_not_shared(metrics):
    """Two gateways in one process count apart, and the global registry stays empty of ours."""
    metrics.refused(Reason.HELD)

    assert ("holdfast_refusals_total", "budget_held") not in samples(Metrics())
    assert not any(family.name.startswith("holdfast") for family in REGISTRY.collect())
