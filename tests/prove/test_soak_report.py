"""The report on the soak says no where something grew, leaked or was miscounted."""

import random
from typing import Any

import pytest

from tests.prove.seats import MORE_THAN_SEATS
from tests.prove.soak import (
    KB_PER_HOUR_MAX,
    NAME,
    NO_LINE,
    SEATS,
    SERVERS,
    STILL_S,
    lines,
    memory,
    stands_still,
    verdicts,
)

REST = {
    "at_s": 600.0, "rss_mb": 90.0, "descriptors": 26, "threads": 7, "holds": 0.0, "in_flight": 0.0, "waiting": 0.0,
    "load": 0.0, "held_tokens": 0, "open_at_servers": 0,
}  # fmt: skip
LOOK = {"descriptors": 60, "threads": 7, "holds": 30.0, "in_flight": 30.0, "waiting": 0.0, "load": 31.0}


def series(leak_mb: float = 0.0, noise_mb: float = 0.3) -> list[dict[str, float]]:
    """A warm-up in which memory grows, and half an hour in which it does not, but for a leak."""
    rng = random.Random(7)
    warm = [{"at_s": 2.0 * one, "rss_mb": 60 + one / 10, **LOOK} for one in range(300)]
    return warm + [
        {"at_s": 602.0 + 2 * one, "rss_mb": 90 + rng.gauss(0, noise_mb) + leak_mb * one / 900, **LOOK}
        for one in range(900)
    ]


def done(**other: Any) -> dict[str, Any]:
    """A soak from which all came back; other: what is different."""
    fine = {
        "on": "a day", "soak_s": 1800.0, "carried": [[30, 60.0], [60, 88.0], [120, 90.0]], "half_per_s": 45.0,
        "warm_up_s": 600.0,
        "before": REST, "after": REST | {"at_s": 2410.0},
        "seats": {"ran": SERVERS * SEATS, "waited": MORE_THAN_SEATS, "closed": SERVERS}, "series": series(),
        "asked": 81_000, "asked_in_all": 110_000, "turned_away": 0, "kills": 200, "freezes": 210,
        "endings": {"finished": 100_000, "client_left": 10_000}, "wrong": [],
    }  # fmt: skip
    return {NAME: fine | other}


def test_all_claims_hold_where_all_came_back():
    """None is left out."""
    assert list(verdicts(done()).values()) == [True] * 9


@pytest.mark.parametrize(
    ("other", "claim"),
    [
        ({"series": series(leak_mb=6.0)}, "memory under load"),
        ({"series": series(leak_mb=6.0, noise_mb=3.0)}, "memory under load"),
        ({"series": series()[:320]}, NO_LINE),
        ({"after": REST | {"rss_mb": 140.0}}, "memory at rest"),
        ({"after": REST | {"descriptors": 27}}, "descriptors"),
        ({"after": REST | {"threads": 10}}, "threads"),
        ({"after": REST | {"waiting": 1.0}}, "waiting"),
        ({"after": REST | {"open_at_servers": 1}}, "answers at servers"),
        ({"after": REST | {"holds": 1.0}}, "holds"),
        ({"after": REST | {"held_tokens": 1}}, "holds"),
        ({"seats": {"ran": SERVERS * SEATS - 1, "waited": MORE_THAN_SEATS + 1, "closed": SERVERS}}, "permits"),
        ({"seats": {"ran": SERVERS * SEATS, "waited": MORE_THAN_SEATS, "closed": SERVERS - 1}}, "breakers"),
        ({"wrong": ["somebody overspent"]}, "overspent"),
    ],
)
def test_one_claim_fails_where_something_did_not(other: dict[str, Any], claim: str):
    """And it is the one that is about it."""
    refused = [said for said, good in verdicts(done(**other)).items() if not good]

    assert len(refused) == 1
    assert claim in refused[0]


def test_what_a_warm_up_takes_is_no_growth():
    """Only what comes after the first look at rest is looked at."""
    line = memory(series(), REST["at_s"])

    assert line is not None
    assert line.span_s < 1800
    assert abs(line.grown) < 0.5


@pytest.mark.parametrize(("looks", "still"), [(300, False), (600, True), (10, True)])
def test_a_warm_up_lasts_until_memory_stands_still(looks: int, still: bool):
    """Ten minutes in which it grows are no end, ten more are; of a few seconds nothing is known."""
    assert stands_still(series()[:looks], STILL_S) is still


def test_noise_excuses_growth_only_so_far():
    """Six megabytes in half an hour are less than the noise here, and more than is excused."""
    line = memory(series(leak_mb=6.0, noise_mb=3.0), REST["at_s"])

    assert line is not None
    assert line.inside_noise
    assert any(f"and at most {KB_PER_HOUR_MAX} KB an hour" in said for said in verdicts(done()))


def test_the_report_says_what_half_is_and_draws_each_series():
    """And what went wrong, one by one."""
    said = lines(done(wrong=["somebody overspent"]))

    assert said[0] == "## 30 minutes at 45 requests a second, three servers"
    assert any("30 clients 60 /s, 60 clients 88 /s, 120 clients 90 /s. Half of the most" in one for one in said)
    assert sum("▇" in one or "█" in one for one in said) >= 6
    assert said[-1] == "- wrong: somebody overspent"
