"""What was promised and kept, told: to programs and to people."""

import io
import json

import pytest

from gateway.sla_table import WORST_SHOWN, show, shown
from guards.attainment import Attainment, Verdict, cell, wilson
from tests.gateway.test_cli import run

KEPT, LATE = Verdict.KEPT, Verdict.LATE_FIRST


def noted(*notes: tuple[str, int, int, Verdict, int]) -> Attainment:
    """Promises: class, tokens of the prompt and of the answer, what became of it, how many times."""
    found = Attainment()
    for name, into, out, verdict, times in notes:
        for _ in range(times):
            found.note(name, cell(into, out), verdict)
    return found


def printed(attainment: Attainment, waiting: int = 0) -> str:
    out = io.StringIO()
    show(shown(attainment, waiting), out)
    return out.getvalue()


def test_everything_that_is_known_is_told():
    """Classes with what broke them, sizes with their spans of tokens, the worst of these, and who waits."""
    told = shown(noted(("chat", 100, 50, KEPT, 9), ("chat", 5000, 50, LATE, 1), ("bulk", 0, 1, KEPT, 1)), 3)

    low, high = wilson(9, 10)
    assert told["waiting"] == 3
    assert told["classes"][1] == {
        "class": "chat", "made": 10, "kept": 9, "share": 0.9, "low": low, "high": high,
        "broken": {"late_first_token": 1, "slow_between_tokens": 0, "late_last_token": 0, "refused": 0, "lost": 0},
    }  # fmt: skip
    assert [(row["class"], row["input_tokens"], row["output_tokens"]) for row in told["sizes"]] == [
        ("bulk", [0, 0], [1, 1]),
        ("chat", [64, 127], [32, 63]),
        ("chat", [4096, 8191], [32, 63]),
    ]
    assert told["worst"] == told["sizes"][2]
    assert json.loads(json.dumps(told)) == told


def test_where_nothing_was_promised_people_are_told_how_to():
    """And programs have empty lists."""
    assert shown(Attainment(), 2) == {"waiting": 2, "classes": [], "sizes": [], "worst": None}
    assert "docs/admission.md" in printed(Attainment())


def test_a_table_has_every_class_and_the_sizes_that_fare_worst():
    """The worst first; what a class was broken by is named with its number."""
    sizes = [("chat", 1 << n, 50, KEPT if n % 2 else LATE, n + 1) for n in range(2 * WORST_SHOWN)]

    text = printed(noted(*sizes, ("bulk", 1, 1, Verdict.LOST, 1000)), 1234)
    lines = [line.split() for line in text.splitlines()]

    assert "1,234 requests wait for a server now." in text
    assert "lost 1000" in text
    assert ["bulk", "1–1", "1–1", "1,000", "0.0", "%", "0.0–0.4", "%"] in lines
    ranked = [line for line in lines if len(line) == 8 and line[0] in ("chat", "bulk") and "–" in line[1]]
    highs = [float(line[6].partition("–")[2]) for line in ranked]
    assert (len(ranked), ranked[0][0], highs) == (WORST_SHOWN, "bulk", sorted(highs))


def test_a_full_tables_rest_is_named_others():
    """They are of no class, and of no size that could be the worst."""
    full = Attainment(cells_max=1)
    for n in (1, 100):
        full.note("chat", cell(n, n), KEPT)

    assert "(others)" in printed(full)
    assert shown(full, 0)["worst"]["class"] == "chat"


def test_without_a_gateway_it_is_one_line():
    """Of where it was asked."""
    _, error = run("sla", "--admin", "http://127.0.0.1:1", code=1)

    assert error.startswith("no gateway answers at http://127.0.0.1:1/admin/sla")


@pytest.mark.parametrize("kept", [0, 1])
def test_one_promise_says_next_to_nothing(kept):
    """Its share is all or nothing, and the interval is wide."""
    told = shown(noted(("chat", 1, 1, KEPT if kept else LATE, 1)), 0)["classes"][0]

    assert told["share"] == kept
    assert told["high"] - told["low"] > 0.7
