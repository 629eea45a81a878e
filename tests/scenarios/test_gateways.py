"""Many gateways on one set of budgets, and the end of what they share: `python -m tests.prove gateways`, in small."""

import random

import pytest

from tests.prove import gateways
from tests.prove.gateways import RUNS, crowded

pytestmark = pytest.mark.slow

SMALL = {
    "CLIENTS": 60, "KEYS": 4, "TOKENS": 8_000, "MONEY": 44_000, "FAULT_AFTER_S": 1.0, "FAULT_S": 6.0, "AWAY_S": 1.0
}  # fmt: skip


@pytest.mark.parametrize("run", ["Redis killed, restarted empty", "Redis killed, its replica promoted"])
def test_no_budget_is_overspent_whatever_becomes_of_redis(run, stubs, tmp_path, monkeypatch):
    """Nothing beyond a budget, nothing delivered and not charged, no request that hangs, and books that agree."""
    for name, value in SMALL.items():
        monkeypatch.setattr(gateways, name, value)
    kind, fault = RUNS[run]

    seen = crowded(tmp_path, kind, fault, list(stubs), random.Random(run))

    assert seen["wrong"] == []
    assert seen["used"] > 0.9
    assert seen["delivered"] > 20_000
