"""A histogram that takes many observations at once, for what happens with every token."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class BatchHistogram(Collector):
    """A histogram with one label, or none. prometheus_client's own takes locks for each value, this one none.

    Used from one thread, the event loop's; another may collect, and then sees a batch in part at worst.

    bounds: upper bounds of the buckets, ascending, in the unit of the values; `+Inf` is added.
    """

    def __init__(self, name: str, help_text: str, label: str | None, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help_text
        self._labels = [label] if label else []
        self._bounds = tuple(bounds)
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(self._bounds) + 1)}
        self._sums: dict[str, float] = {}

    def observe(self, label: str, values: Iterable[float]) -> None:
        """Count values under a label's value; any, where there is no label."""
        counts = self._counts.get(label)
        if counts is None:
            counts = self._counts[label] = [0] * (len(self._bounds) + 1)
        total = 0.0
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
            total += value
        self._sums[label] = self._sums.get(label, 0.0) + total

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the present state to a registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for label, counts in list(self._counts.items()):
            buckets = list(zip(names, accumulate(counts), strict=True))
            family.add_metric([label] if self._labels else [], buckets, self._sums.get(label, 0.0))
        yield family
