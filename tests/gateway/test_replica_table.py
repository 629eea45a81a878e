"""What is told of replicas: to programs and to people."""

import io

import pytest

from gateway.fleet.gauges import Gauges
from gateway.fleet.replica import Replica
from gateway.replica_table import COLUMNS, cells, show, shown, state
from guards import breaker, flapping
from guards.breaker import Breaker, Outcome
from guards.flapping import Trust
from guards.health import Health
from guards.peers import Vitals, compared
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
    assert told == {
        "replica": "a:1", "role": "active", "models": ["m"], "window": {"m": 4096}, "state": "backing off",
        "why": "answers", "for_s": 10.0, "trusted_in_s": 1.5, "flaps": 2, "load": 3, "streams": 0, "silent": 0,
        "weight": 0.125, "worse": ["40 requests wait there, at the others 1"],
        "waiting": 40.0, "kv_used": 0.5, "preemptions": 12.0, "gauges_age_s": 2.0,
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


@pytest.mark.parametrize(
    ("health", "waits", "word"),
    [(UP, False, "up"), (UP, True, "backing off"), (Health(), False, "unknown"), (Health(up=False), False, "down"),
     (Health.ejected(["a test"]), False, "hung")],
)  # fmt: skip
def test_each_state_has_a_word(health, waits, word):
    """And only one that is up can be backing off."""
    assert state(health, waits) == word


@pytest.mark.parametrize(
    ("admin", "code", "says"),
    [("http://127.0.0.1:1", 1, "no gateway answers"), ("file:///etc/passwd", 2, "write a URL")],
)
def test_replicas_of_no_gateway(admin, code, says):
    """One line."""
    assert says in run("replicas", "--admin", admin, code=code)[1]
