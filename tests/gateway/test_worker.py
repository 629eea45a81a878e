"""What workers share, and what is divided among them."""

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.config_file import ConfigErrors, from_upstreams, load, overridden
from gateway.worker import Worker
from guards.place import MANY, Rank
from guards.rate import Counted

YAML = """
workers: 4
models: [{name: m, replicas: [{url: "http://127.0.0.1:9"}]}]
limits: {requests_in_flight: 10, client_connections: 3, hedges_per_s: 10, hedges_burst: 64}
budgets: [{org: acme, limits: [100/day], rates: [10 requests/second burst 22, 1k tokens/minute]}]
"""


def loaded(tmp_path: Path, text: str = YAML) -> Config:
    path = tmp_path / "holdfast.yaml"
    path.write_text(text)
    return load(path)


def test_what_all_may_do_together_is_divided(tmp_path):
    """Rounded down, but one at least: in flight, connections, hedges, rates. Budgets are not."""
    whole = loaded(tmp_path)

    parts = [Worker(number, 4, whole).config for number in range(4)]

    for part in parts:
        limits = part.limits
        assert (limits.requests_in_flight, limits.client_connections) == (2, 1)
        assert (limits.hedges_per_s, limits.hedges_burst) == (2.5, 16)
        assert (part.retries.per_s, part.retries.percent) == (whole.retries.per_s / 4, whole.retries.percent)
        assert part.budgets[0].limits == whole.budgets[0].limits
        requests, tokens = (rate for _, rate in part.budgets[0].rates)
        assert [counted for counted, _ in part.budgets[0].rates] == [Counted.REQUESTS, Counted.TOKENS]
        assert (requests.interval_ns, requests.burst) == (400_000_000, 5)
        assert (tokens.interval_ns, tokens.burst) == (240_000_000, 250)
    assert [part.data for part in parts] == [tmp_path / "holdfast-data" / f"worker-{n}" for n in range(4)]
    assert [part.listen.admin_port for part in parts] == [8081, 8082, 8083, 8084]
    assert {part.listen.port for part in parts} == {8080}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("workers: 0\n" + YAML.replace("workers: 4\n", ""), "workers", "at least 1"),
        (YAML.replace("1k tokens/minute", "3 requests/minute"), "budgets[0].rates", "a burst of fewer than there are"),
        (YAML + "listen: {port: 8083}", "listen.admin_port", "not enough ports"),
        (YAML + "listen: {admin_port: 65534}", "listen.admin_port", "not enough ports"),
    ],
)
def test_what_cannot_be_divided_is_an_error_of_the_file(tmp_path, text, where, what):
    """With its line."""
    with pytest.raises(ConfigErrors) as wrong:
        loaded(tmp_path, text)

    (error,) = wrong.value.errors
    assert (error.field, what in error.message) == (where, True)
    assert error.line > 0


def test_the_command_line_says_how_many(tmp_path):
    """In a file's stead, or without one; and then all must still be divisible."""
    assert overridden(loaded(tmp_path), workers=2).workers == 2
    assert from_upstreams(["http://127.0.0.1:9"], workers=3).workers == 3
    assert from_upstreams(["http://127.0.0.1:9"]).workers == 1
    with pytest.raises(ConfigErrors):
        overridden(loaded(tmp_path), workers=200)


def test_what_may_wait_and_run_is_divided(tmp_path):
    """Rounded down, but one at least. Times, weights and what is promised are each worker's as they are the whole's."""
    admission = "admission: {waiting: 100, wait_s: 9, per_model: 41, per_agent: 3, per_replica: 8}"
    tier = "{name: gold, weight: 2, permits: 10, classes: [{name: chat, first_ms: 500}]}"
    whole = loaded(tmp_path, f"{YAML}\n{admission}\ntiers: [{tier}]")

    part = Worker(3, 4, whole).config

    asked = replace(whole.admission.bounds(9), waiting=25, model=10, agent=1, server=2)
    assert part.admission.bounds(9) == asked
    assert part.tiers[0].rank == whole.tiers[0].rank._replace(permits=2)


def test_what_is_not_limited_is_not_by_workers_either(tmp_path):
    """Who has any number of permits has no gate, which is cheaper than one that never closes."""
    whole = loaded(tmp_path, f"{YAML}\ntiers: [{{name: gold}}]")

    part = Worker(3, 4, whole).config

    assert (part.admission.per_model, part.admission.per_agent) == (MANY, MANY)
    assert part.tiers[0].rank == whole.tiers[0].rank == Rank("gold")


def test_a_declared_keys_rates_are_divided_too(tmp_path):
    """As those of budgets."""
    digest = sha256(b"x").hexdigest()
    whole = loaded(tmp_path, f"{YAML}\nkeys: [{{user: a, sha256: {digest}, rates: [8 requests/minute]}}]")

    ((_, rate),) = Worker(1, 4, whole).config.keys[0].rates

    assert (rate.units, rate.period_s, rate.burst) == (2, 60, 2)


def test_workers_begin_where_no_thread_lives_that_a_signal_could_end_all_by():
    """One that is over for Python may have no processor to end on; it blocks no signal."""
    code = """
import os, threading, time
from gateway.workers import alone
alone()
began_s = time.monotonic()
threading.Thread(target=time.sleep, args=(0.2,)).start()
alone()
print(len(os.listdir("/proc/self/task")), time.monotonic() - began_s >= 0.2)
"""

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout

    assert said.split() == ["1", "True"]
