"""`holdfast doctor` as a process, in front of servers that are well, and of such as are not."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.local.ports import free_ports
from loadtests.stub_server import CONTINUES, PAGES
from tests.processes import HOLDFAST, ROOT
from tests.redis_servers import RedisServer
from tests.scenarios.vllm_like import VllmLike

pytestmark = pytest.mark.slow

DOCTOR_S_MAX = 60.0
PATIENT = {"connect_s": 10, "probe_s": 30}  # however busy this machine is
Said = dict[str, list[str]]


def doctor(*args: Any, code: int, **environment: str) -> tuple[Said, str, str]:
    """What it finds, by level, as «about: said»; its output; and what it tells meanwhile."""
    command = [str(HOLDFAST), "doctor", *map(str, args)]
    env = os.environ | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=DOCTOR_S_MAX, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "--json" not in args:
        return {}, done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is (code == 0)
    found: Said = {"ok": [], "warn": [], "bad": []}
    for one in told["findings"]:
        found[one["level"]].append(f"{one['about']}: {one['said']}")
        assert one["level"] == "ok" or one["instead"]
    return found, done.stdout, done.stderr


def written(folder: Path, servers: list[VllmLike], **more: Any) -> Path:
    """A configuration of one model."""
    port, admin_port = free_ports(2)
    replicas = [{"url": one.url, **({"key": one.key} if one.key else {})} for one in servers]
    said = {"data": str(folder / "data"), "models": [{"name": "m", "replicas": replicas}], "timeouts": PATIENT,
            "listen": {"port": port, "admin_port": admin_port}, **more}  # fmt: skip
    file = folder / "holdfast.yaml"
    file.write_text(json.dumps(said))
    return file


def with_plugin(server: VllmLike, **more: Any) -> None:
    server.answers["/holdfast/status"] = (200, PAGES | more)


def test_a_fleet_that_is_well_has_status_0(tmp_path: Path):
    """All lines are ok but for what nobody can know better, nothing is made, and no token is asked for."""
    with VllmLike(key="sesame") as one, VllmLike(key="sesame") as two:
        for server in (one, two):
            settings = {"store": f"lmdb://{tmp_path}"}
            with_plugin(server, sampling_defaults={}, settings=settings, continues=CONTINUES)
        found, _, said = doctor("--config", written(tmp_path, [one, two]), "--json", code=0)
        asked = set(one.asked)

    assert found["bad"] == []
    assert f"{one.name}: refuses whoever has no key" in found["ok"]
    assert f"{one.name}: serves m (4096 tokens)" in found["ok"]
    assert f"{one.name}: Holdfast's plugin 0.1.0 guards its KV pages" in found["ok"]
    assert "m: 2 servers are alike: tokenizer, chat template, sampling defaults" in found["ok"]
    assert f"page store {tmp_path}: is there" in found["ok"]
    assert asked == {"/health", "/version", "/v1/models", "/is_sleeping", "/holdfast/status", "/tokenize"}
    assert not (tmp_path / "data").exists()
    assert "sesame" not in said


def test_each_thing_that_is_wrong_is_named_and_the_status_is_1(tmp_path: Path):
    """Servers that differ, a clock that is off, a port for everybody, routes for developers, a plugin half there."""
    with VllmLike(behind_s=90, version="0.31.0") as late, VllmLike(host="0.0.0.0", tokens=[9]) as bare:
        late.answers["/is_sleeping"] = (200, {"is_sleeping": False})
        with_plugin(late, protected=False, unprotected=["async-scheduling"], continues=None, continues_not="it is old",
                    corrupt=[{"kind": "changed", "where": "gate", "pages": 2}])  # fmt: skip
        bare.answers["/holdfast/status"] = (404, {"error": {"code": "connector_absent"}})
        found, _, _ = doctor("--config", written(tmp_path, [late, bare]), "--json", code=1)

    bad, warned = "\n".join(found["bad"]), "\n".join(found["warn"])
    assert re.search(rf"^{late.name}: its clock is [0-9]+ s behind ours$", bad, re.MULTILINE)
    assert f"{late.name}: found 2 KV pages that went bad in its memory" in bad
    assert f"{bare.name}: answers without a key, and listens on 0.0.0.0" in bad
    assert f"m: {bare.name} has another tokenizer than most" in bad
    assert f"{late.name}: has vLLM's routes for developers" in warned
    assert f"{late.name}: verifies KV pages that are hit, but does not protect running requests: async" in warned
    assert f"{late.name}: takes over no stream by replaying it: it is old" in warned
    assert f"{bare.name}: has the routes of Holdfast's plugin, but guards no KV pages" in warned
    assert f"m: versions of vLLM differ: {late.name} 0.31.0, {bare.name} 0.32.0" in warned


def test_a_plugin_without_its_routes_is_found_by_its_metrics(tmp_path: Path):
    """Without VLLM_PLUGINS nobody answers at /holdfast/status, but its counters are there."""
    with VllmLike() as one:
        one.answers["/metrics"] = (200, "# x\nholdfast_pages_sealed_total{engine=\"0\"} 3.0\n")
        found, _, _ = doctor("--config", written(tmp_path, [one]), "--json", code=0)

    assert [line for line in found["warn"] if line.startswith(f"{one.name}: has Holdfast's plugin, but not its routes")]


def test_servers_that_are_gone_silent_or_refuse_the_key_are_told_apart_in_bounded_time(tmp_path: Path):
    """A port where nobody is, a server that hangs, one with another key: each bad, with what to do, and progress."""
    (nobody,) = free_ports(1)
    with VllmLike(slow_s=8) as silent, VllmLike(key="other") as keyed:
        urls = [f"http://127.0.0.1:{nobody}", silent.url, keyed.url]
        args = [word for url in urls for word in ("--upstream", url)]
        found, _, said = doctor(*args, "--data", tmp_path, "--json", code=1, HOLDFAST_UPSTREAM_KEY="sesame")
        _, lines, _ = doctor("--upstream", urls[0], "--data", tmp_path, code=1)

    assert f"127.0.0.1:{nobody}: cannot be reached" in found["bad"]
    assert f"{silent.name}: does not answer" in found["bad"]
    assert f"{keyed.name}: refuses its key" in found["bad"]
    assert re.search(rf"[0-2] of 3 servers were looked at; waiting for .*{silent.name}", said)
    assert "sesame" not in said
    assert f"bad   127.0.0.1:{nobody}: cannot be reached. Start it, or correct its url" in lines


def test_a_ledger_is_looked_at_where_it_is_shared(tmp_path: Path):
    """Redis that was not begun and forgets; then begun and told to keep: its own words, by its own INFO."""
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", "--requirepass", "sesame")
    with VllmLike() as one, RedisServer(tmp_path / "redis", *options) as redis:
        url = f"redis://:sesame@127.0.0.1:{redis.port}/0"
        file = written(tmp_path, [one], ledger={"url": url})
        before, _, _ = doctor("--config", file, "--json", code=1)
        with redis.client(password="sesame") as client:
            for name, value in (("maxmemory-policy", "noeviction"), ("appendfsync", "always"), ("appendonly", "yes")):
                client.config_set(name, value)
        subprocess.run([HOLDFAST, "ledger", "begin", "--config", file], cwd=ROOT, check=True, capture_output=True)
        after, _, _ = doctor("--config", file, "--json", code=0)
        redis.kill()
        gone, _, said = doctor("--config", file, "--json", code=1)

    about = f"ledger 127.0.0.1:{redis.port}"
    full = "forgets budgets when it is full (maxmemory-policy allkeys-lru): gateways refuse it"
    assert f"{about}: {full}" in before["bad"]
    assert f"{about}: is empty: no gateway may use it" in before["bad"]
    assert f"{about}: forgets at a restart what was spent since its last snapshot (appendonly no)" in before["warn"]
    left = [line for line in after["warn"] + after["bad"] if line.startswith(about)]
    assert [line for line in left if " answers in " not in line] == []  # as slow as this machine may be
    assert left or [line for line in after["ok"] if line.startswith(f"{about}: Redis ")]
    assert [line for line in gone["bad"] if line.startswith(about)]
    assert "sesame" not in said + json.dumps([before, after, gone])


def test_beside_a_running_gateway_it_says_whether_that_is_ready(stubs, start_gateway):
    """It looks at the same port, and takes nothing from it."""
    gateway = start_gateway([stubs[0].url, stubs[1].url], timeouts=PATIENT)
    found, _, _ = doctor("--config", gateway.config_file, "--json", code=0)

    assert "public port: a gateway runs here, and is ready" in found["ok"]
    assert "admin port: can be reached from this machine only" in found["ok"]


def test_what_is_wrong_in_a_configuration_is_a_finding(tmp_path: Path):
    """With its line, in JSON too: servers beyond loopback without a key, an admin port for everybody."""
    file = tmp_path / "holdfast.yaml"
    models = "models:\n  - name: m\n    replicas:\n      - url: http://10.0.0.5:8000\n"
    file.write_text("listen: {admin_host: 0.0.0.0}\n" + models)
    found, _, _ = doctor("--config", file, "--json", code=1)
    _, lines, _ = doctor("--upstream", "http://10.0.0.5:8000", code=1)

    assert found["bad"] == [
        f"{file}:1: listen.admin_host: an admin port beyond loopback needs a key",
        f"{file}:5: models[0].replicas[0]: vLLM servers beyond loopback need an upstream key",
    ]
    assert "vLLM servers beyond loopback need an upstream key" in lines
    _, _, said = doctor(code=2)
    assert "give either --config FILE or --upstream URL" in said.replace("\n", " ")
