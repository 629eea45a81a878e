"""The report on overload says no where it should."""

from typing import Any

import pytest

from tests.prove import overload
from tests.prove.overload import LOADS, NAME, OFF, ON, lines, verdicts
from tests.two_tenants import BATCH, INTERACTIVE


def row(load: float, policy: str = ON, **more: Any) -> dict[str, Any]:
    """A load under which all is as it should be."""
    return {
        "load": load, "policy": policy, "asked_per_s": 22.0 * load, "good_per_s": 22.0, "tokens_per_s": 3_000.0,
        "kept": {INTERACTIVE: [200, 200], BATCH: [350, 1_000]}, "refused": [600, 50], "at_once_p50_s": 0.002,
        "at_once_p99_s": 0.006, "waited_p99_s": 5.0, "first_p99_s": 0.5, "rss_before": 90e6, "rss_after": 91e6,
        "starved": 0.01, **more,
    }  # fmt: skip


def done(**worst: Any) -> dict[str, Any]:
    """All loads; worst: what is different under the highest."""
    rows = [row(load) for load in LOADS[:-1]] + [row(LOADS[-1], **worst)]
    return {NAME: {"on": "a day", "capacity_per_s": 22.0, "rows": rows, "faults": {}}}


def test_all_claims_hold_where_overload_costs_nothing():
    """None is left out."""
    assert list(verdicts(done()).values()) == [True] * 5


@pytest.mark.parametrize(
    ("worst", "claim"),
    [
        ({"good_per_s": 20.0}, "in time"),
        ({"kept": {INTERACTIVE: [180, 200], BATCH: [350, 1_000]}}, "interactive"),
        ({"at_once_p99_s": 0.011}, "refusals"),
        ({"rss_after": 100e6}, "memory"),
    ],
)
def test_one_claim_fails_where_that_is_what_overload_costs(worst, claim):
    """And says so by its number."""
    broken = [said for said, good in verdicts(done(**worst)).items() if not good]

    assert len(broken) == 1
    assert claim in broken[0]


def test_each_load_has_a_line_and_the_plot_is_drawn(tmp_path, monkeypatch):
    """With admission and without."""
    monkeypatch.setattr(overload, "EVIDENCE", tmp_path)
    found = done()
    found[NAME]["rows"] += [row(load, OFF) for load in LOADS]

    said = lines(found)

    assert sum(one.startswith(tuple(f"| {load:g} |" for load in LOADS)) for one in said) == 2 * len(LOADS)
    assert (tmp_path / "overload.svg").read_text().startswith("<svg")
