"""More demand than budget: all of it is used, nothing beyond it, and hardly anybody is cut who could have been paid."""

import pytest

from tests.sim.demand import Row, rows


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, int], Row]:
    """Every policy under every budget."""
    return {(one.policy, one.budget): one for one in rows(seeds=4)}


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1_000_000, 100_000])
def test_a_budget_is_used_up_and_not_exceeded(table, budget):
    """Beside policies of which one overspends and the other leaves money lying."""
    ours, unbounded, timid = (table[name, budget] for name in ("holdfast", "check, then record", "reserve max_tokens"))

    assert ours.overshoot == 0
    assert ours.used >= 0.99
    assert ours.wrongly < 0.01
    assert unbounded.overshoot > 0.1
    assert timid.overshoot == 0
    assert timid.used < ours.used
    assert table["oracle", budget].wrongly == 0
