"""One run in one process of locust: settings, records, the clients that come, and the generator's own strain."""

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group
from locust.runners import MasterRunner, WorkerRunner

from loadtests.traffic import options, report, traces
from loadtests.traffic.arrivals import Due
from loadtests.traffic.looks import watched
from loadtests.traffic.plan import Mine
from loadtests.traffic.record import Arrival, Record, Strain, Writer, now_s
from loadtests.traffic.scenarios import REPLAY, TENANTS
from loadtests.traffic.server import NoModel, Server
from loadtests.versions import versions

OVER = "holdfast-traffic-over"  # a worker's word that no more clients come, and none is there
STRAIN_S, NAP_S = 1.0, 0.02
KILL_S_MAX = 10.0
GRACE_S = 5.0  # beyond one read's patience: who was asked last may be silent as long as anybody else
ON_REQUEST = (TENANTS, REPLAY)  # they are many scenarios in one, or need a trace
log = logging.getLogger(__name__)


class Run:
    """From locust's `init` on. mine: which part of the run this process does."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.settings = self._settings()
        self.model, self.ids, self.mine = "", True, Mine()
        self.open = self.clients = 0
        self._numbers = count()
        self._writer: Writer | None = None
        self._greenlets = Group()
        self._over = 0
        self._asked: dict[str, str] = {}  # versions, of those who tell
        self.begun_s = now_s()

    @property
    def leads(self) -> bool:
        """Whether this process tells of the run: it is the only one, or the master of others."""
        return not isinstance(self.environment.runner, WorkerRunner)

    @property
    def folder(self) -> Path | None:
        """Where records are, if anywhere: beside the report, unless something else is said."""
        given = self.settings.given
        if given.records or not given.report:
            return Path(given.records) if given.records else None
        return Path(given.report).with_suffix(".records")

    @property
    def open_loop(self) -> bool:
        """Whether clients come when they come: at a rate, or as a trace has them."""
        return bool(self.settings.rates_per_s) or any(one.scenario == REPLAY for one in self.environment.user_classes)

    def next_due(self) -> Due:
        """The next client of a closed loop; no two processes have the same."""
        return Due(0.0, 0, next(self._numbers) * self.mine.of + self.mine.number)

    @contextmanager
    def open_one(self) -> Iterator[None]:
        """A request is open."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def tell(self, record: Record) -> None:
        """Keep what came of a request."""
        if self._writer is not None:
            self._writer.write(request=record)

    # ---------------------------------------------------------------- locust's events

    def test_start(self, **_: Any) -> None:
        """Begin: in each process that has users, and in the one that leads."""
        self.settings, self._over = self._settings(), 0
        server = Server(options.root(self.environment.host or ""), next(iter(self.settings.keys.values()), ""))
        try:
            self.model = self.settings.given.model or server.first_model()
        except NoModel as none:
            log.error("%s", none)
        if self.leads:
            places = {"server": server} | ({"direct": Server(self.settings.direct, "")} if self.settings.direct else {})
            self._asked = {name: told for name, one in places.items() if (told := one.version())}
        if not self.settings.given.words_per_token:
            self.settings = self.settings.worded(server.words_per_token(self.model))
        self.begun_s = now_s()
        if self.leads and self.folder is not None:
            report.cleared(self.folder)
            (self.folder / report.HEAD).write_text(json.dumps(self._head(), indent=1) + "\n")
        if self.leads and self.settings.metrics and self.folder is not None:
            self._greenlets.spawn(watched, self.settings.metrics, Writer(self.folder, "looks"))
        if isinstance(self.environment.runner, MasterRunner):
            return
        given = self.settings.given
        self.mine = Mine(max(0, self.environment.runner.worker_index), self._processes())
        self.ids = not given.no_ids
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(self.folder, f"process-{self.mine.number}")
            self._greenlets.spawn(self._strained, self._writer)
        if self.open_loop:
            self._greenlets.spawn(self._arrive)

    def test_stopping(self, **_: Any) -> None:
        """End: whoever is still being served hangs up."""
        self._greenlets.kill(block=True, timeout=KILL_S_MAX)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def quit(self, **_: Any) -> None:
        """Write the report."""
        if self.leads and self.settings.given.report and self.folder is not None:
            try:
                log.info("report: %s", report.write(self.folder, Path(self.settings.given.report)))
            except (report.NoRun, OSError) as error:
                log.error("no report: %s", error)

    def over(self, **_: Any) -> None:
        """A worker is done; when all are, the run is."""
        self._over += 1
        if self._over >= self._processes():
            gevent.spawn(self._end)

    # ---------------------------------------------------------------- an open loop

    def _arrive(self) -> None:
        """Clients of all scenarios come when they come; then the run is over."""
        classes = self.environment.user_classes
        total = sum(one.weight for one in classes) or 1
        group = Group()
        try:
            for one in classes:
                one.host = one.host or self.environment.host
                group.spawn(self._arrive_for, one(self.environment), one.weight / total)
            group.join()
        finally:
            group.kill()
        if isinstance(self.environment.runner, WorkerRunner):
            self.environment.runner._send_stats()  # locust's own last report may come when its master has gone
            self.environment.runner.send_message(OVER)
        else:
            gevent.spawn(self._end)

    def _arrive_for(self, user: Any, share: float) -> None:
        plan = user.plan.of(share)
        present, most = Group(), self.settings.given.in_flight
        try:
            for client in plan.clients(self.mine):
                due_s = self.begun_s + client.due.at_s
                if (wait_s := due_s - now_s()) > 0:
                    gevent.sleep(wait_s)
                begun = self.clients < most
                if self._writer is not None:
                    said = Arrival(due_s=due_s, begun_s=now_s(), step=client.due.step, begun=begun)
                    self._writer.write(arrival=said)
                if begun:
                    self.clients += 1
                    present.spawn(user.serve, client, due_s).link(self._left)
            present.join(self.settings.given.patience_s + GRACE_S)
        finally:
            present.kill()

    def _left(self, _: Any) -> None:
        self.clients -= 1

    def _end(self) -> None:
        runner = self.environment.runner
        if self.environment.web_ui is None:
            runner.quit()
        else:
            runner.stop()

    def _strained(self, writer: Writer) -> None:
        """Write down each second how much of a core was used, and how late this process woke up."""
        used_s, at_s, late_s = cpu_s(), now_s(), 0.0
        while True:
            before_s = now_s()
            gevent.sleep(NAP_S)
            late_s = max(late_s, now_s() - before_s - NAP_S)
            if (took_s := now_s() - at_s) >= STRAIN_S:
                used, at_s = cpu_s() - used_s, now_s()
                used_s += used
                writer.write(
                    strain=Strain(
                        at_s=at_s, process=self.mine.number, cpu=used / took_s, late_max_s=late_s, open=self.open
                    )
                )
                late_s = 0.0

    # ---------------------------------------------------------------- what it is told

    def _processes(self) -> int:
        runner, given = self.environment.runner, self.settings.given
        return (
            1
            if not isinstance(runner, WorkerRunner | MasterRunner)
            else max(1, given.processes or given.expect_workers)
        )

    def _settings(self) -> options.Settings:
        try:
            return options.read(self.environment.parsed_options)
        except (options.BadOption, traces.TraceError) as error:
            log.error("%s", error)
            sys.exit(2)

    def _head(self) -> dict[str, Any]:
        """What was asked for, and by what. No key is in it."""
        given = self.settings.given
        said = {name.replace("-", "_") for name in options.OPTIONS} - {"keys", "records", "report"}
        return {
            "began_unix": time.time(),
            "began_s": self.begun_s,
            "host": self.environment.host,
            "scenarios": sorted(one.scenario for one in self.environment.user_classes),
            "processes": self._processes(),
            "users": given.num_users,
            "sla": self.settings.sla._asdict(),
            "rates_per_s": list(self.settings.rates_per_s),
            "options": {name: getattr(given, name) for name in sorted(said)},
            "tenants": sorted(filter(None, self.settings.keys)),
            "model": self.model,
            "trace_sha256": traces.digest(Path(given.trace)) if given.trace else "",
            "words_per_token": self.settings.sizes.words,
            "versions": versions("holdfast", "locust", "gevent", "geventhttpclient") | self._asked,
            "cores": os.cpu_count(),
        }


def of(environment: Any) -> Run:
    """The run of an environment."""
    run: Run = environment.holdfast_run
    return run


def attach(environment: Any, **_: Any) -> None:
    """Take part in what locust does. To be called when it has an environment and a runner."""
    run = environment.holdfast_run = Run(environment)
    if not environment.parsed_options.user_classes:
        environment.user_classes[:] = [one for one in environment.user_classes if one.scenario not in ON_REQUEST]
    try:
        options.check({one.scenario for one in environment.user_classes}, run.settings)
    except options.BadOption as error:
        log.error("%s", error)
        sys.exit(2)
    events = environment.events
    events.test_start.add_listener(run.test_start)
    events.test_stopping.add_listener(run.test_stopping)
    events.quit.add_listener(run.quit)
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(OVER, run.over)


def cpu_s() -> float:
    """Seconds that this process has had of a core."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
