"""The report on long conversations says no where it should, and its pictures are SVG documents."""

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.prove import alive, recovery, session_cuts, session_drains, session_kills
from tests.prove.report import EVIDENCE
from tests.prove.timeline import Failover
from tests.prove.timeline import svg as timeline

FINE = {
    "kind": "greedy", "equal": True, "moved": True, "tokens": 90, "asked_tokens": 3100, "tail_tokens": 28,
    "gap_s": 0.14, "engine_s": 0.08, "lost_s": 0.1, "asked_s": 0.11, "first_s": 0.2, "at_s": [-0.01, 0.2, 0.21],
}  # fmt: skip
BROUGHT = 8 * (3100 - 28)
STEPS = (session_kills, session_cuts, session_drains, recovery)


def streams(**worst: Any) -> list[dict[str, Any]]:
    """Eight; the last one is otherwise."""
    return [FINE] * 7 + [FINE | worst]


def killed(arm: str, rows: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    return {
        "round": 1, "arm": arm, "killed_at": 0.0, "streams": rows, "charged_exactly": True, "faults": [],
        "brought_tokens": BROUGHT if arm == session_kills.PAGES else 0, "loaded_s": 0.03, "computed_s": 0.02, **other,
    }  # fmt: skip


def done(step: str = "", at: dict[str, Any] | None = None, **worst: Any) -> dict[str, Any]:
    """All steps as they should be, but for one stream, or one round or wave, of one of them. at: what of it is else."""
    of = {name: streams(**worst if name == step else {}) for name in (one.NAME for one in STEPS)}
    more = {name: (at or {}) if name == step else {} for name in of}
    kills = session_kills.NAME
    rounds = [killed(session_kills.PAGES, of[kills], **more[kills])]
    rounds += [killed(arm, streams()) for arm in (session_kills.PAGES, session_kills.WITHOUT) for _ in range(7)]
    one = {"streams": streams(), "brought_tokens": BROUGHT, "loaded_s": 0.02, "computed_s": 0.01}
    wave = {"on": "a day", "kinds": ["greedy"], "charged_exactly": True, "faults": []}
    cuts = {"waves": [one | {"streams": of[session_cuts.NAME]}, *[one] * 29], **wave, **more[session_cuts.NAME]}
    cuts["alone"] = [one | {"streams": streams()[:1], "brought_tokens": BROUGHT // 8}] * 16
    emptied = {"told": {"empty": True, "took_s": 1.0, "moved": 8}, "charged_exactly": True, "brought_tokens": BROUGHT}
    drains = [{"streams": of[session_drains.NAME], **emptied, **more[session_drains.NAME]}]
    drains += [{"streams": streams(), **emptied}] * 5
    look = FINE | {"brought_tokens": 8192, "loaded_s": 0.02, "computed_s": 0.02}
    looks = [
        {"tokens": tokens, recovery.PAGES: look | (worst if step == recovery.NAME else {}),
         recovery.WITHOUT: look | {"engine_s": 1.0}}
        for tokens in recovery.TOKENS
    ]  # fmt: skip
    return {
        kills: {"on": "a day", "kinds": ["greedy"], "rounds": rounds},
        session_cuts.NAME: cuts,
        session_drains.NAME: {"on": "a day", "kinds": ["greedy"], "rounds": drains, "faults": []},
        recovery.NAME: {"on": "a day", "cores": 2, "looks": looks},
    }


def claims(found: dict[str, Any]) -> dict[str, bool]:
    return {claim: good for step in STEPS for claim, good in step.verdicts(found).items()}


def test_all_claims_hold_where_nobody_notices_anything():
    """None is left out."""
    assert list(claims(done()).values()) == [True] * 18


@pytest.mark.parametrize(
    ("step", "worst", "at", "word"),
    [
        (session_kills.NAME, {"equal": False}, {}, "equals"),
        (session_kills.NAME, {}, {"charged_exactly": False}, "charged once"),
        (session_kills.NAME, {}, {"faults": ["Traceback"]}, "logs"),
        (session_kills.NAME, {}, {"brought_tokens": BROUGHT - 4000}, "computed again"),
        (session_kills.NAME, {"gap_s": 1.2}, {}, "pause"),
        (session_cuts.NAME, {"equal": False}, {}, "equals"),
        (session_cuts.NAME, {}, {"charged_exactly": False}, "charged once"),
        (session_cuts.NAME, {"asked_tokens": 13100}, {}, "computed again"),
        (session_drains.NAME, {"gap_s": 0.2}, {}, "planned move"),
        (session_drains.NAME, {"equal": False}, {}, "equals"),
        (session_drains.NAME, {}, {"told": {"empty": False, "moved": 8}}, "empty"),
        (session_drains.NAME, {}, {"charged_exactly": False}, "charged once"),
        (recovery.NAME, {"engine_s": 0.1}, {}, "times sooner"),
        (recovery.NAME, {"equal": False}, {}, "weights"),
    ],
)
def test_one_thing_that_went_wrong_breaks_its_claim_and_no_other(step, worst, at, word):
    """A stream, a round, a goal."""
    (broken,) = (claim for claim, good in claims(done(step, at, **worst)).items() if not good)

    assert word in broken


def test_a_stream_that_did_not_move_is_none_of_those_that_did():
    """Whatever was meant to cut it."""
    few = done(session_kills.NAME)
    for one in few[session_kills.NAME]["rounds"]:
        one["streams"] = [row | {"moved": False} for row in one["streams"][:5]] + one["streams"][5:]
    broken = [claim for claim, good in claims(few).items() if not good]

    assert any("cut at seeded points" in claim for claim in broken)


def test_one_failover_as_a_picture():
    """It is a document, and says how long each part took; the parts are the pause."""
    one = Failover([-0.1, -0.02, 0.2, 0.21], lost=0.12, asked=0.13, first=0.2, load=0.03, compute=0.01)

    root = ElementTree.fromstring(timeline(one, "tokens & kills"))

    said = "".join(root.itertext())
    assert "kill -9" in said
    assert "the client's pause: 220 ms" in said
    assert "30 ms on the ways; pages loaded in 30 ms" in said
    assert sum(one.steps.values()) == pytest.approx(0.22)


def test_the_figures_in_the_page_are_those_of_the_evidence():
    """Nobody wrote them by hand."""
    assert alive.shown() == alive.figures(json.loads((EVIDENCE / "sessions.json").read_text()))
