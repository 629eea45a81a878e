"""What a replica says of itself in /metrics: how many run and wait, how full its KV cache is, how many it put back."""

import re
from typing import NamedTuple

VALUE_MAX = 1e15  # of one; more, and below 0, is no number of requests
PAGE_BYTES_MAX = 4 << 20  # of /metrics; vLLM's has some hundred kilobytes, more with many adapters
# vLLM 0.11 to 0.33; before its V1 engine the cache was a GPU's. The comments of the exposition do not begin so.
_GAUGE = re.compile(
    rb"^vllm:(num_requests_(?:running|waiting)|(?:kv|gpu)_cache_usage_perc|num_preemptions(?:_total)?)(?:\{[^\n]*\})?"
    rb" ([0-9.eE+-]+)\s*$",
    re.MULTILINE,
)


class Gauges(NamedTuple):
    """Of all engines of a replica together; None where it does not say.

    running, waiting: requests in its batches and in its queues. kv_used: the share of the fullest engine's KV cache,
    0 to 1. preemptions: requests that were put back, ever. at_s: when it was asked, by the fleet's clock.
    """

    waiting: float | None
    kv_used: float | None
    preemptions: float | None
    at_s: float
    running: float | None = None


def read(page: bytes, at_s: float) -> Gauges | None:
    """Read a page of /metrics; None where none of it is there."""
    found: dict[bytes, list[float]] = {}
    for name, number in _GAUGE.findall(page):
        try:
            value = float(number)
        except ValueError:
            continue
        if 0 <= value <= VALUE_MAX:
            found.setdefault(name.removesuffix(b"_total"), []).append(value)
    if not found:
        return None
    running, waiting = found.get(b"num_requests_running"), found.get(b"num_requests_waiting")
    preemptions = found.get(b"num_preemptions")
    kv_used = found.get(b"kv_cache_usage_perc") or found.get(b"gpu_cache_usage_perc")
    return Gauges(
        sum(waiting) if waiting else None,
        max(kv_used) if kv_used else None,
        sum(preemptions) if preemptions else None,
        at_s,
        sum(running) if running else None,
    )
