"""What is known of each replica, as gauges that are read whenever the metrics are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

TOLD = {
    "waiting": "Requests in its queue, as it says.",
    "kv_usage": "Share of its KV cache in use, as it says.",
    "preemptions": "Requests that it put back since its start, as it says.",
    "gauges_age_seconds": "How long ago it said so.",
    "weight": "How much it gets to do beside others of its model.",
    "flaps": "How often it went down again soon after coming up.",
    "backing_off": "Whether it is up and not trusted with requests yet.",
    "drained": "Whether it gets no new requests: an operator drains it, or too many of its KV pages were corrupt.",
    "apart": "Whether its tokenizer, chat template or sampling defaults differ from the others' of a model.",
    "protected": "Whether its plugin protects all that its engines do, as it says.",
    "corrupt_pages": "KV pages that it found corrupt since its start, as it says.",
    "sessions": "Sessions that live at it.",
    "hot_sessions": "Sessions that live elsewhere and whose pages it keeps loaded.",
    "store_queued_pages": "Pages that wait to be written to its page store, as it says.",
    "store_lag_seconds": "How long the oldest of them waits, as it says.",
    "store_shed_pages": "Pages that were not written since its start, as it says.",
    "store_fenced_pages": "Pages that were refused, of sessions that had moved, as it says.",
    "corrupt_pages_lately": "Those of its own memory within integrity.window_s.",
}
STATES = ("closed", "open", "half-open")


class Measured(NamedTuple):
    """One replica. values: by TOLD's names, None for what is not known; breakers: the state of each, by model."""

    replica: str
    values: Mapping[str, float | None]
    breakers: Mapping[str, str]


Look = Callable[[], Iterable[Measured]]


class ReplicaGauges(Collector):
    """One gauge for each of TOLD, one sample for each replica of which it is known; and one for breakers."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Its names, without looking."""
        return iter([*map(_family, TOLD), _breakers()])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the present state to a registry."""
        replicas = list(self._look())
        for name in TOLD:
            family = _family(name)
            for one in replicas:
                if (value := one.values[name]) is not None:
                    family.add_metric((one.replica,), value)
            yield family
        family = _breakers()
        for one in replicas:
            for model, state in one.breakers.items():
                for said in STATES:
                    family.add_metric((one.replica, model, said), said == state)
        yield family


def _family(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"holdfast_replica_{name}", TOLD[name], labels=["replica"])


def _breakers() -> GaugeMetricFamily:
    told = "Whether its failure breaker for a model is in that state."
    return GaugeMetricFamily("holdfast_replica_breaker", told, labels=["replica", "model", "state"])
