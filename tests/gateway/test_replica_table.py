"""What is told of replicas: to programs and to people."""

import io
import json
from typing import Any

import pytest

from gateway.fleet.gauges import Gauges
from gateway.fleet.page_status import Plugin, read
from gateway.fleet.replica import Replica
from gateway.replica_table import COLUMNS, cells, page_cells, show, shown, state, warnings
from gateway.replica_table import PAGES as PAGES_COLUMNS
from guards import breaker, flapping
from guards.breaker import Breaker, Outcome
from guards.flapping import Trust
from guards.health import Health
from guards.peers import Vitals, compared
from loadtests.stub_server import PAGES
from tests.gateway.test_cli import run

UP = Health(up=True, why="answers")
NOW_S = 100.0


def failing() -> Breaker:
    """An open one."""
    made = Breaker(breaker.Plan(calls=2), lambda: NOW_S)
    for _ in range(2):
        made.enter().end(Outcome.FAILED)
    return made


def troubled() -> Replica:
    """A replica of which everything is to be told."""
    return Replica(
        "a:1",
        model="m",
        serves={"m": 4096},
        health=UP,
        load=3,
        since_s=90.0,
        trust=Trust(flaps=2, up_s=99.0, back=True, from_s=101.5),
        breakers={"m": failing()},
        gauges=Gauges(40.0, 0.5, 12.0, 98.0),
        beside=compared(Vitals(waiting=40.0), [Vitals(waiting=1.0)]),
    )


def test_everything_that_is_known_is_told():
    """State and why, since when, load, breaker, queue, cache, preemptions, flaps, window and role; with their ages."""
    (told,) = shown([troubled()], NOW_S, flapping.Plan())

    (one,) = told.pop("breakers")
    del told["pages"]
    assert told == {
        "replica": "a:1", "role": "active", "models": ["m"], "window": {"m": 4096}, "state": "backing off",
        "why": "answers", "for_s": 10.0, "trusted_in_s": 1.5, "flaps": 2, "load": 3, "streams": 0, "silent": 0,
        "ready": False, "sessions": 0, "hot_sessions": 0,
        "weight": 0.125, "worse": ["40 requests wait there, at the others 1"],
        "waiting": 40.0, "kv_used": 0.5, "preemptions": 12.0, "gauges_age_s": 2.0,
        "drained": None,
        "apart": {},
    }  # fmt: skip
    assert one == {
        "model": "m", "state": "open", "why": "2 of 2 requests failed in 10 s", "for_s": 0.0, "calls": 0, "failed": 0
    }  # fmt: skip


def test_what_is_not_known_is_none_and_not_zero():
    """A server that has never answered has no queue, rather than an empty one."""
    (told,) = shown([Replica("a")], NOW_S, flapping.Plan())

    assert {told[name] for name in ("waiting", "kv_used", "preemptions", "gauges_age_s")} == {None}
    assert (told["state"], told["why"], told["models"]) == ("unknown", "not probed yet", [])
    assert cells(told)[COLUMNS.index("waiting")] == "?"


def test_the_table_has_a_row_for_each_with_all_the_reasons():
    """Also in one line that is no terminal's, and names are never markup."""
    out = io.StringIO()
    one = troubled()
    one.name = "[red]a"

    show({"replicas": shown([one, Replica("b", standby=True)], NOW_S, flapping.Plan())}, out)

    said = " ".join(out.getvalue().split())
    for expected in ("[red]a", "backing off", "open", "40", "50%", "40 requests wait there", "2 of 2 requests failed",
                     "trusted in 1.5 s", "standby", "not probed yet"):  # fmt: skip
        assert expected in said


def paged(name: str = "a:1", pages: int = 0, **said: Any) -> Replica:
    """A replica with the plugin, which has found so many corrupt pages."""
    corrupt = [{"kind": "changed", "where": "gate", "pages": pages}, {"kind": "absent", "where": "gate", "pages": 7}]
    one = Replica(name, model="m", health=UP)
    one.pages.plugin, one.pages.fresh_s = Plugin.TOLD, 15.0
    one.pages.status = read(json.dumps(PAGES | {"corrupt": corrupt} | said).encode(), 98.0)
    one.pages.corruption.note(0, 1, 0.0)
    one.pages.corruption.note(pages, 1, 98.0)
    return one


def test_everything_that_a_plugin_says_is_told():
    """With its age, and how much of it is of the last minutes."""
    continues = {"protocol": 1, "seeds": False, "refused": ["logprobs"]}
    store = {"kind": "lmdb", "lag_s": 0.25, "saved": 9, "fenced": 2}
    one = paged(pages=30, unprotected=["weights"], continues=continues, store=store)
    (told,) = shown([one], NOW_S, flapping.Plan())

    assert (told["state"], told["drained"]) == ("drained", "30 corrupt pages in 600 s")
    assert told["pages"] == {
        "plugin": "told", "age_s": 2.0, "protected": True, "unprotected": ["weights"], "versions": ["0.1.0"],
        "fingerprints": ["3fa9c1d2" * 8], "corrupt_lately": 30, "window_s": 600.0, "counts": PAGES["pages"],
        "corrupt": [
            {"kind": "changed", "where": "gate", "pages": 30}, {"kind": "absent", "where": "gate", "pages": 7}
        ],
        "requests": {"recomputed": 0, "aborted": 0}, "chains_broken": 0, "scrub_cycle_s": 1.25,
        "weights_cycle_s": None, "weights_changed": 0,
        "continues": {"seeds": False, "refused": ["logprobs"]}, "continues_not": "",
        "store": store | {"queued_pages": 0, "shed": 0, "lost": 0, "loaded": 0, "missed": 0},
    }  # fmt: skip


def test_pages_have_a_table_of_their_own():
    """All of it; nothing where there is no plugin; and unknown where nobody has asked."""
    without, odd = Replica("b:1"), paged("d:1")
    without.pages.plugin, odd.pages.plugin = Plugin.NONE, Plugin.UNREADABLE
    protocol = {"protocol": 1, "seeds": True, "refused": []}
    first = paged(pages=30, continues=protocol)
    last = paged("e:1", protected=False, unprotected=["weights"], continues=protocol | {"refused": ["logprobs"]})
    replicas = [first, without, Replica("c:1"), odd, last]

    rows = [page_cells(one) for one in shown(replicas, NOW_S, flapping.Plan())]

    assert rows == [
        ("a:1", "protected", "37", "30 in 600 s", "3fa9c1d2", "1.2 s", "yes", "2 s ago", "30 changed, 7 absent"),
        ("b:1", "none", "", "", "", "", "", "", ""),
        ("c:1", "unknown", "?", "?", "?", "?", "?", "?", ""),
        ("d:1", "unreadable", "7", "0 in 600 s", "3fa9c1d2", "1.2 s", "no", "2 s ago", "7 absent"),
        ("e:1", "unprotected", "7", "0 in 600 s", "3fa9c1d2", "1.2 s", "mostly", "2 s ago",
         "7 absent, unprotected: weights"),
    ]  # fmt: skip
    assert {len(row) for row in rows} == {len(PAGES_COLUMNS)}


def test_sessions_and_a_page_store_are_told_of_in_the_notes():
    """How many live there, how many of others are kept loaded there, and what was not written."""
    store = {"kind": "lmdb", "queued_pages": 12, "lag_s": 0.26, "shed": 3}
    (told,) = shown([paged(store=store)], NOW_S, flapping.Plan(), {"a:1": (34, 5)})

    assert (told["ready"], told["sessions"], told["hot_sessions"]) == (True, 34, 5)
    notes = "34 sessions, 5 of others kept loaded, lmdb: 12 queued, 0.3 s behind, 3 shed"
    assert page_cells(told)[-1] == f"7 absent, {notes}"


def test_the_table_of_pages_fits_a_terminal(monkeypatch):
    """Each replica in one line of 120 columns."""
    monkeypatch.setattr("gateway.replica_table.WIDTH", 120)
    out = io.StringIO()

    show({"replicas": shown([paged("10.10.10.105:8000", pages=30)], NOW_S, flapping.Plan())}, out)

    (line,) = [line for line in out.getvalue().splitlines() if "3fa9c1d2" in line]
    assert "30 in 600 s" in line
    assert "30 changed, 7 absent" in line
    assert "holdfast replicas --undrain" in out.getvalue()


def test_replicas_of_one_model_that_differ_are_named():
    """By the beginnings of their fingerprints; those that say none are no difference, nor are those of other models."""
    alike, other, silent = paged("b"), paged("c", fingerprint="77aa0011" * 8), paged("d", fingerprint="")
    elsewhere = paged("e", fingerprint="0f" * 32)
    elsewhere.model = "n"

    def said(*replicas: Replica) -> list[str]:
        return warnings(shown(replicas, NOW_S, flapping.Plan()))

    line = "m: weights, configuration or layout of its replicas differ: a 3fa9c1d2, b 3fa9c1d2, c 77aa0011"
    assert said(paged("a"), alike, other, silent, elsewhere) == [line]
    assert said(paged("a"), alike, silent, elsewhere, Replica("f", model="m")) == []
    out = io.StringIO()
    show({"replicas": [], "warnings": [line]}, out)
    assert line in out.getvalue()


def test_why_a_replica_continues_no_streams_is_said():
    """By its plugin; one that was not asked lately is not known to continue any, and nothing is said of it."""
    why, stale = paged("a", continues=None, continues_not="names of vLLM have moved"), paged("b")
    stale.pages.fresh_s = 1.0
    told = shown([why, stale], NOW_S, flapping.Plan())

    assert warnings(told) == ["a continues no streams of others by replay: names of vLLM have moved"]
    assert [one["pages"]["continues"] for one in told] == [None, None]


@pytest.mark.parametrize(
    ("health", "waits", "drained", "word"),
    [(UP, False, False, "up"), (UP, True, False, "backing off"), (Health(), False, True, "unknown"),
     (Health(up=False), False, True, "down"), (Health.ejected(["a test"]), False, True, "hung"),
     (UP, True, True, "drained")],
)  # fmt: skip
def test_each_state_has_a_word(health, waits, drained, word):
    """And only one that is up can be backing off, or drained."""
    assert state(health, waits, drained) == word


@pytest.mark.parametrize(
    ("admin", "code", "says"),
    [("http://127.0.0.1:1", 1, "no gateway answers"), ("file:///etc/passwd", 2, "write a URL")],
)
def test_replicas_of_no_gateway(admin, code, says):
    """One line."""
    assert says in run("replicas", "--admin", admin, code=code)[1]


def test_a_replica_that_differs_is_named_with_what_differs_and_what_follows():
    """In a line of its own; one that does so no more is not."""
    one, other = Replica("a:1", model="m"), Replica("b:1", model="m")
    one.apart["m"], other.apart["m"] = (), ("tokenizer", "sampling defaults")

    (line,) = warnings(shown([one, other], NOW_S, flapping.Plan()))

    assert line.startswith("m: b:1 has another tokenizer and sampling defaults than most: it gets requests, but no")
