"""The report on KV pages says no where it should."""

from typing import Any

import pytest

from tests.prove import clean_pages, injections, page_costs
from tests.prove.page_costs import AGAIN, JUDGED, SETTINGS, SIZES, WITHOUT

FINE = {
    "seed": 0, "place": "stored", "kind": "flip", "changed": True, "read": True, "counted": 1, "harmed": 2, "equal": 1,
    "errors": 0, "wrong": 0, "moved": 0, "early": 0, "broken": 0, "again_wrong": 0,
}  # fmt: skip
RUNNING = {"place": "answer, while it runs"}


def injected(setting: str = "recompute", **worst: Any) -> dict[str, Any]:
    """A thousand that must all be found, and some with less scrubbing; one of a setting is otherwise."""
    settings = {name: [FINE] * round(1000 * share) for name, share in injections.SHARES.items()}
    settings[setting] = [FINE | worst, *settings[setting][1:]]
    settings[injections.CONTROL] = [FINE | {"counted": 0, "moved": 1}]
    return {injections.NAME: {"on": "a day", "answers": 3, "same_answers": True, "settings": settings}}


@pytest.mark.parametrize(
    ("setting", "worst", "claims"),
    [
        ("default", {}, []),
        ("scarce", {"errors": 1, "early": 2, "moved": 1, "counted": 0} | RUNNING, []),
        ("scarce", {"counted": 0}, ["counted"]),
        ("recompute", {"counted": 0} | RUNNING, ["counted"]),
        ("recompute", {"errors": 1}, ["`recompute`"]),
        ("abort", {"early": 1}, ["`abort`"]),
        ("abort", {"moved": 1}, ["`abort`"]),
        ("default", {"wrong": 1}, ["less scrubbing"]),
        ("default", {"errors": 1}, ["less scrubbing"]),
        ("default", {"again_wrong": 1}, ["after that"]),
        ("default", {"counted": 3}, ["nothing else"]),
        ("default", {"changed": False}, ["nothing else"]),
        ("default", {"broken": 1}, ["nothing else"]),
    ],
)
def test_one_injection_that_went_wrong_breaks_its_claims_and_no_others(setting, worst, claims):
    """An error is none where less is scrubbed, and where that is the policy."""
    broken = [said for said, good in injections.verdicts(injected(setting, **worst)).items() if not good]

    assert len(broken) == len(claims)
    assert all(word in said for word, said in zip(claims, broken, strict=True))


def clean(differing: list[int], **counted: float) -> dict[str, Any]:
    none = dict.fromkeys([*clean_pages.ALARMS, *clean_pages.WORK], 0)
    work = {"vllm:num_preemptions": 3, "holdfast_prefix_hit_tokens": 9}
    crowd = {"words": "all", "requests": 10_000, "compared": 1000, "differing": differing}
    return {clean_pages.NAME: {"on": "a day", "crowds": [crowd | {"counted": none | work | counted}]}}


@pytest.mark.parametrize(
    ("differing", "counted", "claim"),
    [
        ([], {"holdfast_pages_corrupt": 1}, "alarm"),
        ([7], {}, "without the plugin"),
        ([], {"vllm:num_preemptions": 0}, "preempted"),
    ],
)
def test_an_alarm_or_another_answer_breaks_its_claim(differing, counted, claim):
    """And an easy crowd shows nothing."""
    assert all(clean_pages.verdicts(clean([])).values())
    (broken,) = [said for said, good in clean_pages.verdicts(clean(differing, **counted)).items() if not good]

    assert claim in broken


def costs(always: float) -> dict[str, Any]:
    """Rounds in which the plugin takes such a share."""
    one = {"wall_s": 1.0, "cpu_s": 1.0, "steps": 10, "ttft_s": 0.1, "digest_s": 0.0, "hooks_s": 0.0}
    rounds = [dict.fromkeys(SETTINGS, one) | {"always": one | {"cpu_s": 1 + always, "hooks_s": always}}] * 3
    return {page_costs.NAME: {"on": "a day", "sizes": dict.fromkeys(SIZES, rounds)}}


def test_a_goal_is_missed_where_the_plugin_takes_more():
    """By what its hooks take, whatever else cannot be told."""
    assert list(page_costs.verdicts(costs(0.01)).values()) == [True, True]
    assert list(page_costs.verdicts(costs(0.03)).values()) == [False, True]


def test_all_is_written_down_and_the_plot_is_drawn(tmp_path, monkeypatch):
    """A line for each setting but the one that all are compared with."""
    monkeypatch.setattr(page_costs, "EVIDENCE", tmp_path)
    done = injected() | clean([]) | costs(0.01)

    said = [line for part in (injections, clean_pages, page_costs) for line in part.lines(done)]

    assert sum(line.startswith((f"| {AGAIN} |", "| always |")) for line in said) == 2 * len(SIZES)
    assert not any(line.startswith(f"| {WITHOUT} |") for line in said)
    assert any(line.startswith("| stored | flip | 1300 | 1300 | 1300 | 0 |") for line in said)
    assert JUDGED in (tmp_path / "pages.svg").read_text()
