"""What is found of replicas, told: in the journal, the log and the metrics; and what it means for their legs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import structlog

from gateway.fleet.listener import Listener
from gateway.fleet.replica import LEAVING, Replica
from gateway.forecasts import Forecasts
from gateway.homes import Lodger
from gateway.waiting import Waiting
from gateway.watch.alerts import Alerts
from gateway.watch.metrics import Metrics
from gateway.watch.replica_gauges import Measured
from guards.breaker import Breaker, State

log = structlog.get_logger()

NOBODY: Mapping[str, tuple[int, int]] = {}
Append = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]


class Verdicts(Listener):
    """Tells each change once. Facts: `replica.judged`, `replica.breaker`, `replica.compared`, `replica.drained`,
    `replica.emptied`, `replica.apart` and `session.moved`.

    append: of the journal. abandon: ends a replica's legs; streams: also those that wait for tokens.
    waiting: where requests wait for replicas; None where they do not. forecasts: None where nothing is predicted.
    alerts: who tells somebody of what an operator has to do.
    lodged: how many sessions live at each replica, and how many have their pages loaded there beside.
    """

    waiting: Waiting | None = None
    forecasts: Forecasts | None = None
    alerts: Alerts | None = None
    lodged: Callable[[], Mapping[str, tuple[int, int]]] = dict

    def __init__(self, append: Append, metrics: Metrics, abandon: Callable[..., None]) -> None:
        self._append, self._metrics, self._abandon = append, metrics, abandon

    def changed(self, replica: Replica) -> None:
        name, health = replica.name, replica.health
        facts = {"up": bool(health.up), "why": health.why, "flaps": replica.trust.flaps}
        say, event = (log.info, "replica.up") if health.up else (log.warning, "replica.down")
        say(event, replica=name, why=health.why)
        self._append("replica.judged", {"replica": name}, facts)
        self._metrics.verdict(name, up=bool(health.up), hung=health.hung)
        if not health.up:
            self._abandon(name, streams=health.gone)
        if health.gone and self.forecasts is not None:
            self.forecasts.lost(name)
        if self.waiting is not None:
            if health.up or not health.gone:
                self.waiting.again()
            else:
                self.waiting.lost(name)

    def turned(self, replica: Replica, model: str, breaker: Breaker) -> None:
        state = breaker.state
        say = log.warning if state is State.REFUSING else log.info
        say("replica.breaker", replica=replica.name, model=model, state=state, why=breaker.why)
        facts = {"state": state, "why": breaker.why}
        self._append("replica.breaker", {"replica": replica.name, "model": model}, facts)
        self._metrics.replica_breaker_turned(replica.name, model, state)

    def gauged(self, replica: Replica) -> None:
        gauges = replica.gauges
        if self.waiting is not None and gauges is not None and gauges.waiting is not None:
            running = replica.load if gauges.running is None else gauges.running
            self.waiting.look(replica.name, int(running), int(gauges.waiting), int(gauges.preemptions or 0))

    def compared(self, replica: Replica) -> None:
        beside = replica.beside
        log.info("replica.compared", replica=replica.name, weight=round(beside.weight, 3), why=beside.words)
        facts = {"weight": round(beside.weight, 3), "why": "; ".join(beside.words)}
        self._append("replica.compared", {"replica": replica.name}, facts)

    def drained(self, replica: Replica, why: str) -> None:
        if replica.drained:
            self._metrics.drained(replica.name)
        elif self.waiting is not None:
            self.waiting.again()
        if self.alerts is not None:
            self.alerts.drained(replica.name, drained=replica.drained, why=why)

    def leaving(self, replica: Replica) -> None:
        log.info("replica.leaving", replica=replica.name, leaving=replica.leaving)
        facts = {"drained": replica.drained, "why": LEAVING if replica.leaving else "an operator said so"}
        self._append("replica.drained", {"replica": replica.name}, facts)
        if not replica.drained and self.waiting is not None:
            self.waiting.again()

    def emptied(self, replica: Replica, moved: int, took_s: float) -> None:
        """Nothing runs there any more."""
        facts = {"moved": moved, "took_s": round(took_s, 3)}
        log.info("replica.emptied", replica=replica.name, **facts)
        self._append("replica.emptied", {"replica": replica.name}, facts)

    def moved(self, why: str = "drain") -> None:
        """A stream that was moved goes on elsewhere."""
        self._metrics.moved(why)

    def session_moved(self, lodger: Lodger, was: str, why: str, same: bool | None) -> None:
        """It lives elsewhere now."""
        facts = {"from": was, "to": lodger.replica, "why": why, "same_model": same, "generation": lodger.generation}
        log.info("session.moved", key_id=lodger.key_id, **facts)
        self._append("session.moved", lodger.about, facts)
        self._metrics.session_moved(why)

    def parted(self, replica: Replica, model: str) -> None:
        what = list(replica.apart.get(model, ()))
        say = log.warning if what else log.info
        say("replica.apart" if what else "replica.alike", replica=replica.name, model=model, what=what)
        self._append("replica.apart", {"replica": replica.name, "model": model}, {"what": what})


def measured(
    replicas: Iterable[Replica], now_s: float, lodged: Mapping[str, tuple[int, int]] = NOBODY
) -> Iterator[Measured]:
    """What the metrics tell of each replica. lodged: as of `Verdicts`."""
    for one in replicas:
        gauges, pages = one.gauges, one.pages.status
        store = pages and pages.store
        sessions, hot = lodged.get(one.name, (0, 0))
        yield Measured(
            one.name,
            {
                "waiting": gauges and gauges.waiting,
                "kv_usage": gauges and gauges.kv_used,
                "preemptions": gauges and gauges.preemptions,
                "gauges_age_seconds": now_s - gauges.at_s if gauges else None,
                "weight": one.beside.weight,
                "flaps": one.trust.flaps,
                "backing_off": one.trust.waits(now_s),
                "drained": one.drained,
                "apart": any(one.apart.values()),
                "protected": pages and pages.protected,
                "corrupt_pages": pages and sum(pages.corrupt.values()),
                "sessions": sessions,
                "hot_sessions": hot,
                "store_queued_pages": store and store.counts["queued_pages"],
                "store_lag_seconds": store and store.lag_s,
                "store_shed_pages": store and store.counts["shed"],
                "store_fenced_pages": store and store.counts["fenced"],
                "corrupt_pages_lately": pages and one.pages.corruption.lately(now_s),
            },
            {model: breaker.state for model, breaker in one.breakers.items()},
        )
