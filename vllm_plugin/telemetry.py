"""Counters of both halves, as vLLM carries them from its processes to /metrics.

In every step each half gives away what it counted; vLLM adds that up over workers and hands it to `Metrics`, in the
process that answers /metrics. Of the same each half keeps the totals, for the plugin's own status: status.py.
"""

from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from vllm_plugin.prefix import PREFIX
from vllm_plugin.progress import LAG, QUEUED
from vllm_plugin.status import CORRUPT

AGE = "scrub_cycle_seconds"  # a state and not a sum: the latest counts, and of many workers the worst
WEIGHTS_CYCLE = "weights_cycle_seconds"
STATES = {
    AGE: "How long ago the resident page was looked at that was not for the longest time.",
    WEIGHTS_CYCLE: "How long it takes to find weights that changed without being announced, in a busy server.",
    QUEUED: "Pages that wait to be written to the page store, as of the last step.",
    LAG: "How long the oldest of them has waited.",
}
COUNTERS = {
    "pages_sealed": "KV pages digested when they were full.",
    "pages_verified": "Pages looked at because a request hit them.",
    "pages_scrubbed": "Resident pages looked at because there was time.",
    "pages_evicted": "Pages taken out of the prefix cache because they must not be read.",
    "pages_withdrawn": "Pages taken out of the prefix cache because they may have been computed from a bad one.",
    "chains_broken": "Requests admitted with pages that were not one unbroken chain.",
    "requests_recomputed": "Running requests computed anew from their last good page.",
    "requests_aborted": "Running requests ended with an error because of a bad page.",
    "prefix_hit_tokens": "Tokens that were not computed again, as their pages were resident and intact.",
    "pages_saved": "Pages that were written to the page store.",
    "pages_deduplicated": "Pages that were not written to the page store, as it had them.",
    "pages_shed": "Pages that were not given to the page store, as too much waited to be written.",
    "pages_lost": "Pages that the page store took and could not keep: no room, or it failed.",
    "pages_fenced": "Pages that the page store refused, as their session had moved to another engine.",
    "store_failures": "How often the page store, or what it lies on, said no.",
    "pages_missed": "Pages that the page store had, and that were not loaded: gone, bad or too late.",
    "pages_loaded": "Pages brought from the page store, and found intact in their place.",
    "models_changed": "How often weights, or what an adapter's name stands for, became others.",
    "models_changed_unannounced": "Those of them that nobody had announced.",
    "pages_brought": "Pages brought by another connector that are what this engine once sealed.",
    "digest_seconds": "Time spent on sums of pages.",
    "digest_bytes": "Bytes of pages summed.",
}


@dataclass
class Stats(KVConnectorStats):
    """What was counted since the last time. data: by name."""

    data: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, number: float) -> None:
        """That many more."""
        if number:
            self.data[name] = self.data.get(name, 0) + number

    def state(self, name: str, value: float) -> None:
        """That is how it is now."""
        self.data[name] = value

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, number in other.data.items():
            mine = self.data.get(name, 0)
            self.data[name] = max(mine, number) if name in STATES else mine + number
        return self

    def reduce(self) -> dict[str, int | float]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


class Metrics(KVConnectorPromMetrics):
    """The same under `holdfast_`, by engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        _forget_others()
        counter_of, gauge_of = metric_types[Counter], metric_types[Gauge]
        self._counters = {
            name: counter_of(name=f"holdfast_{name}", documentation=text, labelnames=labelnames)
            for name, text in COUNTERS.items()
        }
        self._corrupt = counter_of(
            name="holdfast_pages_corrupt",
            documentation="Pages that were not what they were when they were written, by kind and by who found it.",
            labelnames=[*labelnames, "kind", "where"],
        )
        self._states = {
            name: gauge_of(
                name=f"holdfast_{name}", documentation=text, labelnames=labelnames, multiprocess_mode="mostrecent"
            )
            for name, text in STATES.items()
        }
        self._prefix = counter_of(
            name="holdfast_prefix_tokens",
            documentation="Tokens of prompts, and those of them that were there, by length and by the step's batch.",
            labelnames=[*labelnames, "what", "input", "batch"],
        )
        for labels in per_engine_labelvalues.values():
            for counter in self._counters.values():
                counter.labels(*labels)  # so that they are there before anything happens, as zeros

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """One step's."""
        labels = self.per_engine_labelvalues[engine_idx]
        for name, number in transfer_stats_data.items():
            kind = name.split(".")
            if name in self._states:
                self._states[name].labels(*labels).set(number)
            elif kind[0] == CORRUPT:
                self._corrupt.labels(*labels, *kind[1:]).inc(number)
            elif kind[0] == PREFIX:
                self._prefix.labels(*labels, *kind[1:]).inc(number)
            elif name in self._counters:
                self._counters[name].labels(*labels).inc(number)


def _forget_others() -> None:
    """Those of an engine that this process had before: vLLM does the same with its own."""
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("holdfast_"):
            REGISTRY.unregister(collector)
