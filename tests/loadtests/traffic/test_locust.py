"""Real locust, in processes of its own, against a stub upstream and a gateway: what it asks, and what it notices.

Runs end when all clients have been served, not after a time; how fast that goes is nobody's business here.
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.local.leashed import group
from gateway.local.ports import free_ports
from loadtests import stub_orders
from loadtests.traffic.commands import load_app
from loadtests.traffic.plan import Plan
from loadtests.traffic.record import Record, Stage, Tail
from tests.processes import ForkedGateway as Gateway

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 120.0
LOAD = (sys.executable, "-c", "from loadtests.traffic.commands import load_app; load_app()")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "HOLDFAST_LOAD_"))}
PATIENT = ("--patience-s", "40", "--sla", "ttft=60,tpot=60")

pytestmark = pytest.mark.slow


def load(folder: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], list[Record]]:
    """Run `holdfast load`: its status, its report, and what it wrote down of each request."""
    out = folder / "report.html"
    ran = subprocess.run(
        [*LOAD, *arguments, "--out", str(out), "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    log = (folder / "report.records" / "locust.log").read_text()
    assert ran.stdout, log
    assert "Traceback" not in log
    records = [one.request for one in Tail(folder / "report.records").read() if one.request is not None]
    return ran.returncode, json.loads(ran.stdout), records


def test_locusts_users_find_what_they_know(start, tmp_path):
    """`locust -f`, with classes, --processes and --json-file: rows in milliseconds, and every client of the plan."""
    stub = start(model="tiny")
    out, rows = tmp_path / "r.html", tmp_path / "rows"
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
    command += ["--host", f"{stub.url}/v1", "-u", "2", "-r", "2", "--processes", "2"]
    command += ["--rate", "6", "--each-s", "1.5", "--think-s", "0", "--size", "0.1", "--report", str(out)]
    port = str(free_ports(1)[0])
    command += [
        "--master-bind-port",
        port,
        "--master-port",
        port,
        "--json-file",
        str(rows),
        *PATIENT,
        "ChatSessions",
        "Agents",
    ]

    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRONMENT)

    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.with_suffix(".json").read_text())
    seen = {
        (row["method"], row["name"]): row["num_requests"] for row in json.loads(rows.with_suffix(".json").read_text())
    }
    due = [
        len(list(Plan(name, 1, (6 * share,), 1.5).clients())) for name, share in (("chat", 2 / 3), ("agents", 1 / 3))
    ]
    assert (found["rates"]["clients_offered"], found["rates"]["clients_begun"]) == (sum(due), sum(due))
    assert found["stages"] == {"whole": found["rates"]["requests"]}
    assert found["head"]["processes"] == found["generator"]["processes"] == 2
    for name in ("chat", "agents"):
        assert (
            seen["TTFT", name]
            == seen["E2E", name]
            == seen["POST", name]
            == found["by_scenario"][name]["stages"]["whole"]
        )
        assert seen["ITL", name] > 0
    assert stub.stats()["open_streams"] == 0


def test_a_gateway_is_compared_with_its_server_and_watched(start, tmp_path):
    """Every scenario, each tenant by its key: pairs, whole streams, hang-ups, a budget that stops a runaway."""
    stub = start(model="tiny")
    folder = tmp_path / "gateway"
    folder.mkdir()
    with Gateway(folder, [stub.url], model="tiny") as gateway:
        keys = tmp_path / "keys"
        limits = {"alice": None, "mallory": 100}
        keys.write_text("".join(f"{name} {gateway.key(name, tokens)}\n" for name, tokens in limits.items()))
        common = ("--rate", "24", "--each-s", "1", "--think-s", "0", "--size", "0.05", "--context", "1024", *PATIENT)
        status, found, records = load(
            tmp_path, "all", "--host", gateway.url, *common, "--direct", stub.url, "--metrics", gateway.admin_url,
            "--keys", str(keys),
        )  # fmt: skip

        secrets = keys.read_text().split()[1::2]
        written = (tmp_path / "report.records" / "run.json").read_text() + (tmp_path / "report.html").read_text()
        stages = {(one.scenario, one.tenant): one for one in records}
        assert not any(secret in written for secret in secrets)
        assert {one.stage for one in records} <= {Stage.WHOLE, Stage.LEFT, Stage.STOPPED, Stage.REFUSED}
        assert all(
            one.tenant == "mallory" and one.code.startswith("budget_") for one in records if one.stage is Stage.REFUSED
        )
        assert {one.where for one in records} == {"gateway", "direct"}
        assert found["paired"]["TTFT"]["values"] > 0
        assert all(one.counted for one in records if one.stage is Stage.WHOLE)
        assert {one.replica for one in records if one.where == "gateway" and one.status == 200} == {
            f"127.0.0.1:{stub.port}"
        }
        assert status == int(any(one.stage is Stage.REFUSED for one in records))
        assert len({one[0] for one in stages}) == 6
        assert found["gateway"]["rss_bytes"]
        assert any(name.startswith("key:") for name in found["gateway"]["budgets"])


FAULTS: tuple[tuple[str, dict[str, Any], Stage], ...] = (
    ("silence", {}, Stage.BEFORE_FIRST), ("silence_after", {"at": 3}, Stage.MID_STREAM),
    ("cut", {"at": 3}, Stage.MID_STREAM), ("cut", {"at": 3, "how": "fin"}, Stage.MID_STREAM),
    ("cut_event", {"at": 3}, Stage.MID_STREAM), ("cut_utf8", {"at": 3}, Stage.MID_STREAM),
    ("comments_only", {}, Stage.BEFORE_FIRST), ("comments_only", {"at": 3}, Stage.MID_STREAM),
    ("bad_ids", {"at": 3}, Stage.ACCOUNTING),
    ("error_then_done", {"at": 3}, Stage.MID_STREAM), ("error_then_done", {"at": 0}, Stage.BEFORE_FIRST),
    ("abort_finish", {"at": 3}, Stage.MID_STREAM), ("garbage", {"at": 3}, Stage.MID_STREAM),
    ("eof_no_done", {"at": 3}, Stage.TRUNCATED), ("usage_missing", {}, Stage.ACCOUNTING),
    ("wrong_usage", {}, Stage.ACCOUNTING), ("status", {"status": 503}, Stage.REFUSED),
    ("no_ids", {}, Stage.WHOLE), ("drip", {}, Stage.WHOLE),
    ("big_event", {"at": 3, "bytes": 300_000}, Stage.ACCOUNTING),
)  # fmt: skip


def test_no_broken_stream_is_taken_for_a_whole_one(start, tmp_path):
    """Every fault of the stub, one request each, in the order of a trace: what an SDK would not notice is noticed."""
    assert {name for name, *_ in FAULTS} == set(stub_orders.FAULTS)
    stub = start(model="tiny")
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 50 * n, "input_length": 20, "output_length": 120} for n in range(len(FAULTS) + 2)]
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, order, _ in FAULTS:
        stub.arm(name, **order)

    status, found, records = load(
        tmp_path, "replay", "--host", stub.url, "--trace", str(trace), "--model", "tiny", "--words-per-token", "1",
        "--patience-s", "8",  # a whole stream waits for no byte as long, however busy the machine is
    )  # fmt: skip

    wanted = Counter(stage for *_, stage in FAULTS) + Counter({Stage.WHOLE: 2})
    assert Counter(one.stage for one in records) == wanted
    assert status == 1
    assert {one["stage"] for one in found["errors"]} == {stage.value for stage in wanted if stage is not Stage.WHOLE}
    assert sum(one.counted for one in records if one.stage is Stage.WHOLE) == wanted[Stage.WHOLE] - 1


def test_nobody_there_is_an_error_of_its_own(tmp_path):
    """And no traceback."""
    status, found, records = load(
        tmp_path, "chat", "--host", f"http://127.0.0.1:{free_ports(1)[0]}", "--rate", "5", "--each-s", "1",
        "--model", "m", "--words-per-token", "1",
    )  # fmt: skip

    assert (status, {one.stage for one in records}) == (1, {Stage.CONNECT})
    assert found["rates"]["good"] == 0


def test_ctrl_c_ends_it_and_leaves_a_report(start, tmp_path):
    """In the middle of streams: status 130, what came so far is reported, no process is left."""
    stub = start(model="tiny", tokens_per_s=5)
    out = tmp_path / "r.html"
    command = [
        *LOAD,
        "chat",
        "--host",
        stub.url,
        "--rate",
        "10",
        "--each-s",
        "600",
        "--out",
        str(out),
        "--processes",
        "2",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        until_s = time.monotonic() + LIMIT_S
        while stub.stats()["open_streams"] < 3 and time.monotonic() < until_s and process.poll() is None:
            time.sleep(0.1)
        (leash,) = children(process.pid)
        groups = {leash, *children(leash)}
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130, told
    assert "interrupted" in told
    assert "unfinished" in said
    assert out.exists()
    assert not any(group(one) for one in groups)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no such scenario: nothing"),
        (["replay"], "needs a trace"), (["tenants", "--keys", __file__], "write a tenant's name and its key"),
        (["chat", "--rate", "x"], "--rate 'x'"),
        (["chat", "--out", "."], "--out .: it is a folder"),
        (["chat", "--out", "/proc"], "--out /proc: it is a folder"),
        (["chat", "--out", "r.json"], "--out r.json: beside it come"),
        (["chat", "--model", "m", "--out", "/proc/none/r.html"], "cannot be made: "),
        (["chat", "--host", "http://127.0.0.1:80a"], "does not tell a model (nonnumeric port"),
        (["chat", "--host", "here"], "write a URL"), (["replay", "--trace", "/none"], "/none: No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_told_at_once(arguments, words, tmp_path, monkeypatch):
    """With status 2, before locust is started; nothing is left in the folder."""
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(load_app, arguments)

    assert (told.exit_code, words in told.output, list(tmp_path.iterdir())) == (2, True, []), told.output


def test_a_server_that_tells_no_model_is_not_loaded(start, tmp_path, monkeypatch):
    """With why on the terminal, and nothing left in the folder; a proxy of the environment has no part in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (dead,) = free_ports(1)

    none = CliRunner().invoke(load_app, ["chat", "--host", f"http://127.0.0.1:{dead}"])
    left = list(tmp_path.iterdir())
    brief = ["--rate", "10", "--each-s", "1", "--think-s", "0", "--size", "0.1"]
    some = CliRunner().invoke(load_app, ["chat", "--host", start().url, *brief, *PATIENT])

    assert (none.exit_code, "/v1/models does not tell a model (" in none.output, left) == (2, True, []), none.output
    assert some.exit_code == 0, some.output


def test_keys_go_to_no_server_whose_certificate_is_nobodys(tmp_path):
    """Unless it is trusted on purpose."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    pem = tmp_path / "server.pem"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", pem.with_suffix(".key"), "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    with secure(pem) as (port, heard):
        more = ["chat", "--host", f"https://localhost:{port}", "--model", "m", "--each-s", "1"]
        more += ["--words-per-token", "1"]
        status, found, _ = load(tmp_path, *more, OPENAI_API_KEY="sesame")
        before = list(heard)
        load(tmp_path, *more, OPENAI_API_KEY="sesame", SSL_CERT_FILE=str(pem))

    assert (status, set(found["stages"])) == (1, {"connect"})
    assert "CERTIFICATE_VERIFY_FAILED" in found["errors"][0]["said"]
    assert (before, set(heard)) == ([], {"Bearer sesame"})


@contextmanager
def secure(pem: Path) -> Iterator[tuple[int, list[str]]]:
    """A server by TLS that refuses all: its port, and the keys that it was shown."""
    heard: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.headers["authorization"])
            self.send_error(503)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, pem.with_suffix(".key"))

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, address: Any) -> None:
            with suppress(OSError), context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, address)

    server = Server(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def children(pid: int) -> list[int]:
    """Of a process, all of whose threads started none but it."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
