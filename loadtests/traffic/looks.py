"""What a gateway says of itself under load: its /metrics, and its budgets where the admin port tells them."""

import json
import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loadtests.traffic.record import Look, Writer, now_s
from loadtests.traffic.server import OPENER, UNREADABLE

ADMIN_KEY = "HOLDFAST_ADMIN_KEY"
EVERY_S, CALL_S_MAX = 1.0, 2.0
BUDGETS_MAX = 100
STARTED = "process_start_time_seconds"
KEPT = (  # of the metrics, by how they begin
    STARTED,
    "holdfast_build_info",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "holdfast_failover_gap_seconds",
    "holdfast_failovers_total",
    "holdfast_refusals_total",
    "holdfast_requests_in_flight",
    "holdfast_waiting",
    "holdfast_tokens_total",
)


def watched(roots: Sequence[str], writer: Writer) -> None:
    """Look once a second, at each, until the greenlet is killed."""
    watch = Watch(roots)
    try:
        while True:
            writer.write(look=watch.look())
            time.sleep(EVERY_S)
    finally:
        writer.close()


class Watch:
    """Looks at all admin ports of a gateway, again and again; its workers' metrics are added up."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._before: dict[str, dict[str, float]] = {}  # what each said last, if it ever said anything
        self._added: dict[str, float] = {}

    def look(self) -> Look:
        """Look once. Gauges are those of who answers now; counters are what came to them since who has them answered
        first: over a restart, at which they begin anew, and over looks without an answer.
        """
        found = Look(at_s=now_s())
        for root in self._roots:
            with suppress(*UNREADABLE):
                self._take(root, dict(samples(_get(f"{root}/metrics").decode())), found.metrics)
            with suppress(*UNREADABLE):
                found.budgets |= dict(budgets(json.loads(_get(f"{root}/admin/budgets?limit={BUDGETS_MAX}"))))
        found.metrics.update(self._added)
        return found

    def _take(self, root: str, said: dict[str, float], gauges: dict[str, float]) -> None:
        before = self._before.get(root)
        if before is not None and before.get(STARTED) != said.get(STARTED):
            before = {}  # another process, which counts from nothing
        for name, value in said.items():
            if counts(name):
                had = value if before is None else before.get(name, 0.0)
                self._added[name] = self._added.get(name, 0.0) + value - had
            elif name != STARTED:
                gauges[name] = gauges.get(name, 0.0) + value
        self._before[root] = said


def counts(name: str) -> bool:
    """Whether a sample is of a counter or a histogram, which only grows until its process ends."""
    return name.partition("{")[0].endswith(("_total", "_bucket", "_count", "_sum"))


def samples(text: str) -> Iterator[tuple[str, float]]:
    """Those samples that are kept, as `name{label=value}`. Raises ValueError."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(KEPT) and not sample.name.endswith("_created"):
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                yield f"{sample.name}{{{labels}}}" if labels else sample.name, sample.value


def budgets(said: dict[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each budget's name, and what is spent of how much."""
    for scope in said["data"]:
        for limit in scope["limits"]:
            yield f"{scope['scope']} {limit['unit']}/{limit['window']}", (float(limit["spent"]), float(limit["amount"]))


def _get(url: str) -> bytes:
    headers = {"authorization": f"Bearer {os.environ[ADMIN_KEY]}"} if os.environ.get(ADMIN_KEY) else {}
    with OPENER.open(urllib.request.Request(url, headers=headers), timeout=CALL_S_MAX) as response:
        data: bytes = response.read()
        return data
