"""What is known of each replica, as gauges that are read whenever the metrics are."""

from collections.abc import Callable, Iterable, Iterator, Mapping

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
    "breakers_open": "Breakers of its models that are not closed.",
}

Look = Callable[[], Iterable[tuple[str, Mapping[str, float | None]]]]


class ReplicaGauges(Collector):
    """One gauge for each of TOLD, one sample for each replica of which it is known."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Its names, without looking."""
        return (_family(name) for name in TOLD)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the present state to a registry."""
        replicas = list(self._look())
        for name in TOLD:
            family = _family(name)
            for replica, values in replicas:
                if (value := values[name]) is not None:
                    family.add_metric((replica,), value)
            yield family


def _family(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"holdfast_replica_{name}", TOLD[name], labels=["replica"])
