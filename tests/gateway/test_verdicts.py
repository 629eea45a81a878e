"""What is found of replicas is told once, everywhere."""

import json
from collections.abc import Mapping
from typing import Any

from structlog.testing import capture_logs

from gateway.fleet.gauges import Gauges
from gateway.fleet.page_status import read
from gateway.fleet.replica import Replica
from gateway.verdicts import Verdicts, measured
from gateway.watch.alerts import Alert, Alerts
from gateway.watch.metrics import Metrics
from gateway.watch.replica_gauges import STATES
from guards.breaker import Breaker, Outcome, Plan, State
from guards.flapping import Trust
from guards.health import Health
from guards.peers import Vitals, compared
from loadtests.stub_server import PAGES
from tests.gateway.watch.test_metrics import samples


class Ear:
    """Verdicts, and who hears of them."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.abandoned: list[tuple[str, bool]] = []
        self.metrics = Metrics()
        self.verdicts = Verdicts(self.append, self.metrics, self.abandon)

    def append(self, kind: str, about: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        self.facts.append((kind, {**about, **fields}))

    def abandon(self, name: str, *, streams: bool) -> None:
        self.abandoned.append((name, streams))


def test_a_verdict_is_a_fact_with_its_reason():
    """Up or down, why, and how often it flapped; one that is down loses its legs, all of them if it is gone."""
    ear = Ear()
    one = Replica("a", trust=Trust(flaps=3))
    with capture_logs() as logs:
        for health in (Health(up=True, why="answers"), Health(up=False, why="slow"), Health.ejected(["x", "y"])):
            one.health = health
            ear.verdicts.changed(one)

    assert ear.facts == [
        ("replica.judged", {"replica": "a", "up": True, "why": "answers", "flaps": 3}),
        ("replica.judged", {"replica": "a", "up": False, "why": "slow", "flaps": 3}),
        ("replica.judged", {"replica": "a", "up": False, "why": "hangs: x, y", "flaps": 3}),
    ]
    assert ear.abandoned == [("a", False), ("a", True)]
    assert [log["event"] for log in logs] == ["replica.up", "replica.down", "replica.down"]
    assert samples(ear.metrics)["holdfast_ejections_total", "a"] == 1


def test_a_breaker_that_turns_is_a_fact_a_count_and_a_line():
    """With the state it came into and the reason; as it turns, so from within the turn."""
    ear, one = Ear(), Replica("a")
    breaker = Breaker(Plan(calls=1), lambda: 0.0, lambda turned: ear.verdicts.turned(one, "m", turned))
    with capture_logs() as logs:
        breaker.enter().end(Outcome.FAILED)

    why = "1 of 1 requests failed in 10 s"
    assert ear.facts == [("replica.breaker", {"replica": "a", "model": "m", "state": "open", "why": why})]
    assert samples(ear.metrics)["holdfast_replica_breaker_turns_total", "a", "m", "open"] == 1
    assert [(log["log_level"], log["why"]) for log in logs] == [("warning", why)]


class Waiter:
    """Hears what requests that wait are to know."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *said: self.heard.append((name, *said))


def test_who_waits_hears_of_ups_losses_and_gauges():
    """Permits come back from a server that is gone, not from one that merely does not answer: its streams go on."""
    ear, waits, forecasts = Ear(), Waiter(), Waiter()
    ear.verdicts.waiting, ear.verdicts.forecasts = waits, forecasts  # type: ignore[assignment]
    one = Replica("a", load=7)
    for health in (Health(up=True, why="answers"), Health(up=False, why="slow"), Health.ejected(["x", "y"])):
        one.health = health
        ear.verdicts.changed(one)
    told, half = Gauges(3.0, 0.5, 9.0, 5.0, running=2.0), Gauges(0.0, 0.5, None, 5.0)
    for one.gauges in (None, Gauges(None, 0.5, 9.0, 5.0), told, half):
        ear.verdicts.gauged(one)

    assert waits.heard == [("again",), ("again",), ("lost", "a"), ("look", "a", 2, 3, 9), ("look", "a", 7, 0, 0)]
    assert forecasts.heard == [("lost", "a")]


def test_a_comparison_is_a_fact_and_no_verdict():
    """Its weight and the words; nobody's legs end."""
    ear = Ear()
    one = Replica("a", beside=compared(Vitals(gap_s=1.0), [Vitals(gap_s=0.1)]))

    ear.verdicts.compared(one)

    said = "its gaps between tokens are 1.000 s, the others' 0.100 s"
    assert ear.facts == [("replica.compared", {"replica": "a", "weight": 0.125, "why": said})]
    assert ear.abandoned == []


def test_a_replica_that_is_drained_is_told_of_as_loudly_as_can_be():
    """A fact, a warning, a count and an alert; its streams go on, and who waits hears when it is back."""
    ear, waits, sent = Ear(), Waiter(), list[Alert]()
    ear.verdicts.waiting = waits  # type: ignore[assignment]
    ear.verdicts.alerts = Alerts(ear.append, ear.metrics, lambda: 0.0)
    ear.verdicts.alerts.send = sent.append
    one = Replica("a")
    with capture_logs() as logs:
        one.pages.corruption.drained = "11 corrupt pages in 600 s"
        ear.verdicts.drained(one, "11 corrupt pages in 600 s")
        heard = list(waits.heard)
        one.pages.corruption.forgive()
        ear.verdicts.drained(one, "an operator said so")

    assert ear.facts == [
        ("replica.drained", {"replica": "a", "drained": True, "why": "11 corrupt pages in 600 s"}),
        ("replica.drained", {"replica": "a", "drained": False, "why": "an operator said so"}),
    ]
    assert [log["log_level"] for log in logs] == ["warning", "info"]
    assert (heard, waits.heard, ear.abandoned) == ([], [("again",)], [])
    assert [json.loads(alert.body)["data"]["drained"] for alert in sent] == [True, False]
    assert len({alert.alert_id for alert in sent}) == 2
    seen = samples(ear.metrics)
    assert (seen["holdfast_drains_total", "a"], seen["holdfast_alerts_total", "replica.drained"]) == (1, 2)


def test_what_an_operator_drains_is_told_of_and_is_no_alert():
    """Facts at its beginning, when it is empty and at its end; who waits for a server hears when it is back."""
    ear, waits, sent = Ear(), Waiter(), list[Alert]()
    ear.verdicts.waiting = waits  # type: ignore[assignment]
    ear.verdicts.alerts = Alerts(ear.append, ear.metrics, lambda: 0.0)
    ear.verdicts.alerts.send = sent.append
    one = Replica("a", leaving=True)
    with capture_logs() as logs:
        ear.verdicts.leaving(one)
        ear.verdicts.moved()
        ear.verdicts.emptied(one, 1, 0.25)
        heard = list(waits.heard)
        one.leaving = False
        ear.verdicts.leaving(one)

    assert ear.facts == [
        ("replica.drained", {"replica": "a", "drained": True, "why": "an operator drains it"}),
        ("replica.emptied", {"replica": "a", "moved": 1, "took_s": 0.25}),
        ("replica.drained", {"replica": "a", "drained": False, "why": "an operator said so"}),
    ]
    assert [log["event"] for log in logs] == ["replica.leaving", "replica.emptied", "replica.leaving"]
    assert (heard, waits.heard, ear.abandoned, sent) == ([], [("again",)], [], [])
    seen = samples(ear.metrics)
    assert seen["holdfast_moves_total", "drain"] == 1


def test_the_metrics_say_what_plugins_say():
    """And nothing of servers that have none."""
    one = Replica("a")
    said = PAGES | {"corrupt": [{"kind": "absent", "where": "gate", "pages": 9}]}
    one.pages.status = read(json.dumps(said).encode(), 0.0)
    one.pages.corruption.note(0, 1, 0.0)
    one.pages.corruption.note(11, 1, 5.0)
    metrics = Metrics()
    metrics.replicas(lambda: measured([one, Replica("b")], 7.0))

    seen, prefix = samples(metrics), "holdfast_replica_"

    names = ("drained", "protected", "corrupt_pages", "corrupt_pages_lately")
    assert [seen.get((prefix + name, "a")) for name in names] == [1, 1, 9, 11]
    assert [seen.get((prefix + name, "b")) for name in names] == [0, None, None, None]


def test_the_metrics_say_what_is_known_of_each_replica():
    """And nothing where nothing is: an unknown queue is not an empty one."""
    told, silent = Replica("a", gauges=Gauges(3.0, None, 9.0, 5.0), trust=Trust(up_s=0.0, from_s=8.0)), Replica("b")
    metrics = Metrics()
    metrics.replicas(lambda: measured([told, silent], 7.0))

    seen = samples(metrics)

    prefix = "holdfast_replica_"
    assert [seen.get((prefix + one, "a")) for one in ("waiting", "kv_usage", "preemptions", "gauges_age_seconds")] == [
        3.0, None, 9.0, 2.0,
    ]  # fmt: skip
    assert (prefix + "waiting", "b") not in seen
    assert (seen[prefix + "backing_off", "a"], seen[prefix + "backing_off", "b"]) == (1.0, 0.0)
    assert (seen[prefix + "weight", "b"], seen[prefix + "flaps", "b"]) == (1, 0)


def test_the_metrics_say_in_which_state_each_breaker_is():
    """Per replica and model: 1 for the one that it is in, 0 for the others; and all of pybreaker's states are there."""
    failing, idle = Breaker(Plan(calls=1), lambda: 0.0), Breaker(Plan(), lambda: 0.0)
    failing.enter().end(Outcome.FAILED)
    metrics = Metrics()
    metrics.replicas(lambda: measured([Replica("a", breakers={"m": failing, "n": idle})], 7.0))

    seen = {name: value for name, value in samples(metrics).items() if name[0] == "holdfast_replica_breaker"}

    assert {tuple(name[1:]) for name, value in seen.items() if value} == {("a", "m", "open"), ("a", "closed", "n")}
    assert len(seen) == 2 * len(State)
    assert set(STATES) == set(State)


def test_a_replica_that_differs_is_told_with_what_differs():
    """A fact and a line each time, and a metric while it does."""
    ear, one = Ear(), Replica("a", model="m")
    with capture_logs() as logs:
        for what in (("tokenizer", "sampling defaults"), ()):
            one.apart["m"] = what
            ear.verdicts.parted(one, "m")
            assert next(iter(measured([one], 0.0))).values["apart"] is bool(what)

    about = {"replica": "a", "model": "m"}
    assert ear.facts == [
        ("replica.apart", about | {"what": ["tokenizer", "sampling defaults"]}),
        ("replica.apart", about | {"what": []}),
    ]
    said = [(log["event"], log["log_level"]) for log in logs]
    assert said == [("replica.apart", "warning"), ("replica.alike", "info")]
