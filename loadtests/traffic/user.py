"""The locust user that asks OpenAI-compatible servers: streams are read as they come, and looked at to their end."""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import gevent
import gevent.ssl
import msgspec
from gevent.pool import Group
from geventhttpclient.response import HTTPParseError
from locust import FastHttpUser

from loadtests.traffic import run
from loadtests.traffic.arrivals import Due
from loadtests.traffic.buckets import middle_s
from loadtests.traffic.options import DIRECT_KEY, root
from loadtests.traffic.plan import Client
from loadtests.traffic.record import ERRORS, Record, Stage, now_s
from loadtests.traffic.scenarios import Answer, Ask
from loadtests.traffic.stream import SAID_MAX, Watch, refused

GAPS_TOLD_MAX = 50  # of a stream, to locust: each costs as much as a request there; the report has all of them
BODY_BYTES_MAX = 1 << 20  # of an answer that is no stream
ANY_STATUS = frozenset(range(100, 600))
READ_BYTES = 1 << 16
IDLE_S = 0.5


@cache  # it takes tens of milliseconds, and serves any number of connections
def trusting(cafile: str | None = None) -> Any:
    """Certificates are looked at, for keys go with requests. Trusted are those that this machine trusts, and that
    SSL_CERT_FILE names; cafile: where it has none.
    """
    paths = gevent.ssl.get_default_verify_paths()
    return gevent.ssl.create_default_context(cafile=None if paths.cafile or paths.capath else cafile)


class StreamUser(FastHttpUser):
    """Asks what its scenario's scripts say. Rows in locust: the request, and TTFT, ITL, TPOT, E2E, in milliseconds."""

    abstract = True
    scenario = ""
    concurrency = 100_000  # of connections: how many there are is for the loop to say
    insecure = False
    ssl_context_factory = staticmethod(trusting)

    def __init__(self, environment: Any) -> None:
        self._run = run.of(environment)
        self.network_timeout = self.connection_timeout = self._run.settings.given.patience_s
        self.root = self.host = root(self.host or environment.host or "")
        super().__init__(environment)
        agent: Any = self.client.client
        agent.valid_response_codes = ANY_STATUS  # else a refusal's words are thrown away
        self.plan = self._run.settings.plan(self.scenario)

    @property
    def open_loop(self) -> bool:
        """Whether clients come when they come, whatever locust's users do."""
        return self._run.open_loop

    def idle(self) -> None:
        """Nothing for a while."""
        gevent.sleep(IDLE_S)

    def next_due(self) -> Due:
        """The next client of a closed loop."""
        return self._run.next_due()

    def wait_time(self) -> float:
        """Between two clients of a closed loop; each of them thinks in its own time."""
        return 0.0

    def serve(self, client: Client, due_s: float | None) -> None:
        """Do all that a client does. due_s: when it should have begun, on the records' clock."""
        answers: list[Answer] = []
        asked, first = 0, True
        while True:
            try:
                asks = next(client.script) if first else client.script.send(answers)
            except StopIteration:
                return
            if asks[0].after_s:
                gevent.sleep(asks[0].after_s)
            due = due_s if first else None
            if len(asks) == 1:
                answers = [self.ask(asks[0], client, asked, due)]
            else:
                answers = self._at_once(asks, client, asked, due)
            asked, first = asked + len(asks), False

    def _at_once(self, asks: Sequence[Ask], client: Client, asked: int, due_s: float | None) -> list[Answer]:
        group = Group()
        try:
            started = [group.spawn(self.ask, one, client, asked + number, due_s) for number, one in enumerate(asks)]
            group.join()
        finally:
            group.kill()
        return [one.value if isinstance(one.value, Answer) else Answer(False) for one in started]

    def ask(self, ask: Ask, client: Client, turn: int, due_s: float | None) -> Answer:
        """Ask once; twice where there is a server to compare with, in an order of chance, one after the other."""
        places = [("gateway", self.root)]
        if (
            (direct := self._run.settings.direct)
            and ask.leave_after is None
            and ask.leave_s is None
            and not ask.may_stop
        ):
            places.append(("direct", direct))
            random.Random(f"{self.plan.seed}/{client.name}/{turn}").shuffle(places)
        pair = f"{client.name}/{turn}" if len(places) > 1 else ""
        answer = Answer(False)
        for number, (where, host) in enumerate(places):
            record = Record(
                sent_s=0.0,
                scenario=client.scenario,
                stage=Stage.UNFINISHED,
                where=where,
                pair=pair,
                due_s=None if number else due_s,
                step=client.due.step,
                tenant=client.tenant,
                session=client.name,
                turn=turn,
            )
            watch = self._send(ask, record, host)
            if where == "gateway":
                answer = Answer(record.stage is Stage.WHOLE, watch.text)
        return answer

    def _send(self, ask: Ask, record: Record, host: str) -> Watch:
        """Send it, read it to its end, tell locust and the records. However it ends, it is told once."""
        watch = Watch(record)
        body = {"model": self._run.model, **ask.body, "stream": True, "stream_options": {"include_usage": True}}
        if self._run.ids:
            body["return_token_ids"] = True
        record.sent_s = now_s()
        with self._run.open_one():
            leaving = gevent.Timeout.start_new(ask.leave_s)
            try:
                with self.client.post(
                    host + ask.path,
                    data=msgspec.json.encode(body).decode(),
                    name=record.scenario,
                    stream=True,
                    catch_response=True,
                    headers=self._headers(ask, record),
                    allow_redirects=False,
                ) as response:
                    self._read(response, ask, watch, record)
                    if record.stage in ERRORS:
                        response.failure(f"{record.stage}: {record.status} {record.code} {record.said}")
                    else:
                        response.success()
            finally:
                leaving.close()
                if record.stage is Stage.UNFINISHED:
                    record.end_s = now_s() - record.sent_s
                self._tell(record)
        return watch

    def _headers(self, ask: Ask, record: Record) -> dict[str, str]:
        keys = self._run.settings.keys
        key = keys.get(record.tenant) or next(iter(keys.values()), "")
        if record.where == "direct":
            key = os.environ.get(DIRECT_KEY, "")
        said = {"content-type": "application/json", "accept-encoding": "identity", **ask.headers}
        return said | ({"authorization": f"Bearer {key}"} if key else {})

    def _read(self, response: Any, ask: Ask, watch: Watch, record: Record) -> None:
        if (error := getattr(response, "error", None)) is not None:
            record.end_s = now_s() - record.sent_s
            left = ask.leave_s is not None and record.end_s >= ask.leave_s
            record.stage, record.said = (Stage.LEFT, "") if left else (Stage.CONNECT, _why(error))
            return
        record.status = response.status_code
        record.replica = str(response.headers.get("x-holdfast-replica") or "")
        record.retries = int(str(response.headers.get("x-holdfast-retries") or 0))
        inner = response._response
        if record.status >= 400:
            refused(record, record.status, inner.read(BODY_BYTES_MAX), now_s() - record.sent_s, may_stop=ask.may_stop)
            return
        lost, left = "", False
        try:
            for data in pieces(inner):
                watch.feed(data, at_s := now_s() - record.sent_s)
                if at_s - watch.heard_s > self.network_timeout:
                    raise TimeoutError(f"no event for {self.network_timeout:g} s")  # comments alone say nothing
                if ask.leave_after is not None and watch.tokens >= ask.leave_after:
                    left = True
                    break
        except gevent.Timeout:
            left = True
        except (OSError, ValueError, HTTPParseError) as error:
            lost = _why(error)
        finally:
            inner.release()  # hangs up, unless all was read
        watch.end(now_s() - record.sent_s, lost=lost, left=left and not watch.done, may_stop=ask.may_stop)

    def _tell(self, record: Record) -> None:
        self._run.tell(record)
        if record.stage is not Stage.WHOLE or record.where == "direct":
            return
        rows: list[tuple[str, float | None]] = [
            ("TTFT", record.first_s), ("TPOT", record.per_token_s), ("E2E", record.end_s), *_some(record.gaps)
        ]  # fmt: skip
        for name, seconds in rows:
            if seconds is not None:
                self.environment.events.request.fire(
                    request_type=name, name=record.scenario, response_time=seconds * 1e3, response_length=0,
                    exception=None, context={},
                )  # fmt: skip


def pieces(response: Any) -> Iterator[bytes]:
    """What a response has, as it comes: its own `read` waits until it has as much as it was asked for.

    Raises ConnectionError where it ends before its framing says so.
    """
    while True:
        if response._body_buffer:
            data = bytes(response._body_buffer)
            response._body_buffer.clear()
            yield data
        if response.message_complete:
            return
        if (sock := response._sock) is None:
            raise ConnectionError("connection closed")
        if not (data := sock.recv(READ_BYTES)) and not _ended_by_closing(response):
            raise ConnectionError("connection closed in the middle")
        response.feed(data)


def _ended_by_closing(response: Any) -> bool:
    """Whether the end of the connection is the end of the answer."""
    return response.get("content-length") is None and response.get("transfer-encoding") is None


def _some(gaps: Mapping[int, int]) -> Iterator[tuple[str, float]]:
    """The gaps of a stream, for locust: all, or as many as may be told, evenly from the shortest to the longest."""
    ranked = [number for number in sorted(gaps) for _ in range(gaps[number])]
    step = max(1, -(-len(ranked) // GAPS_TOLD_MAX))
    return (("ITL", middle_s(number)) for number in ranked[step - 1 :: step])


def _why(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:SAID_MAX]
