"""What lies beside the packages for those who install them: the image, the fleet of compose.yaml, the unit of systemd.

No image is built here, since that needs Docker. What can be read, parsed and run without it is.
"""

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from gateway.cli import app
from gateway.config_file import load
from gateway.config_times import Timeouts
from gateway.local.ports import free_ports
from tests.processes import until
from tests.readme import ROOT
from tests.redis_servers import redis_server
from vllm_plugin.settings import Settings
from vllm_plugin.store.redis_address import read

ENVIRONMENT = {
    "MODEL": "some/model", "UPSTREAM_KEY": "u" * 64, "REDIS_PASSWORD": "r" * 64, "PAGES_PASSWORD": "p" * 64,
    "PAGES_KEY": "ab" * 32, "HF_TOKEN": "",
}  # fmt: skip
SECRET = re.compile(r"KEY|PASSWORD|TOKEN|AUTH")
DATA = "/var/lib/holdfast"
CONSTRAINED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def compose() -> dict[str, Any]:
    """With variables, as Docker has it after it has filled in the environment."""
    text = re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?)?\}", lambda m: ENVIRONMENT.get(m[1], m[2] or ""), source())
    said: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return said


def source() -> str:
    return (ROOT / "compose.yaml").read_text("utf-8")


def dockerfile(stage: str) -> dict[str, list[str]]:
    """What each instruction of a stage says, by its word."""
    said: dict[str, list[str]] = {}
    inside = False
    for line in (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            inside = rest.endswith(f" AS {stage}")
        elif inside and word.isupper():
            said.setdefault(word, []).append(rest)
    return said


def understood(words: list[str], of: Any = None) -> str:
    """The command that the command line takes these words for. Raises what it would say of them."""
    group: Any = of or get_command(app)
    found = group.get_command(group.make_context("holdfast", list(words)), words[0])
    assert found is not None, f"there is no command {words[0]}"
    if hasattr(found, "get_command"):
        return f"{words[0]} {understood(words[1:], found)}"
    found.make_context(words[0], words[1:])
    return words[0]


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    """Somebody who answers every question with that; the port."""

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def healthy(command: list[str], port: str, instead: int) -> bool:
    """What a health check says of a server at another port than its own."""
    *_, option, code = command
    assert option == "-c"
    assert port in code
    done = subprocess.run([sys.executable, "-c", code.replace(port, str(instead))], capture_output=True, timeout=30)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("of", ["gateway", "vllm-1"])
def test_health_checks_need_no_curl_and_tell_who_is_well(of):
    """200 is healthy; 503, and nobody, are not."""
    if of == "gateway":
        (said,) = dockerfile("gateway")["HEALTHCHECK"]
        command, port = json.loads(said[said.index("[") :]), "8080"
    else:
        command, port = compose()["services"][of]["healthcheck"]["test"], "8000"
    (nobody,) = free_ports(1)
    with answering(200) as well, answering(503) as ill:
        assert healthy(command, port, well)
        assert not healthy(command, port, ill)
    assert not healthy(command, port, nobody)


def test_the_image_of_the_gateway_is_small_and_nobodys():
    """Nothing is built in it, it runs as a number that is not root, and what it runs is a command of ours."""
    said = dockerfile("gateway")

    assert "RUN" not in said
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", *said["USER"])
    assert json.loads(*said["ENTRYPOINT"]) == ["holdfast"]
    words = json.loads(*said["CMD"])
    assert understood(words) == "serve"
    assert words[words.index("--data") + 1] == DATA == said["VOLUME"][0]
    assert said["STOPSIGNAL"] == ["SIGTERM"]


def test_everything_that_dockerfile_copies_is_let_in_and_no_more():
    """.dockerignore leaves all out but what is named, so that no key and no data goes to a builder."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {name for rest in dockerfile("build")["COPY"] for name in rest.split()[:-1]}

    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch(name, "*.env") or "data" in name for name in let_in)


def test_an_image_holds_the_versions_that_the_tests_run_with():
    """requirements/image.txt is complete, by hash, and agrees with constraints.txt."""
    text = (ROOT / "requirements" / "image.txt").read_text()
    locked = {name.lower().replace(".", "-"): version for name, version in CONSTRAINED.findall(text)}
    tested = dict(CONSTRAINED.findall((ROOT / "requirements" / "constraints.txt").read_text()))
    tested = {re.sub(r"[._]", "-", name.lower()): version for name, version in tested.items()}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    assert {re.split(r"[<>=]", one)[0].lower().replace(".", "-") for one in wanted} <= set(locked)
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}
    assert text.count("--hash=sha256:") >= len(locked)


def test_the_fleet_of_compose_yaml_is_one_that_the_gateway_takes():
    """Its command is understood, its configuration is without a fault, and names the servers that are there."""
    services = compose()["services"]
    gateway = services["gateway"]
    assert understood(gateway["command"]) == "serve"
    mounted = dict(volume.split(":")[:2] for volume in gateway["volumes"])
    (file,) = (host for host, inside in mounted.items() if inside == "/etc/holdfast/holdfast.yaml")
    assert gateway["command"][gateway["command"].index("--config") + 1] == mounted[file]

    config = load(ROOT / file, gateway["environment"])

    assert [one.host for one in config.replicas] == ["vllm-1", "vllm-2"]
    for one in config.replicas:
        server = services[one.host]
        assert one.key is not None
        assert one.key.get_secret_value() == server["environment"]["VLLM_API_KEY"]
        assert f"--served-model-name={config.models[0].name}" in server["command"]
        assert f"--port={one.port}" in server["command"]
    assert config.ledger.server is not None
    assert config.ledger.server.addresses == (("ledger", 6379),)
    assert config.ledger.server.password == ENVIRONMENT["REDIS_PASSWORD"]
    assert int(gateway["stop_grace_period"].removesuffix("s")) > Timeouts().drain_s + 1


def test_the_commands_of_the_documents_are_there():
    """Those of docs/install.md and docs/doctor.md that are pasted into a shell, word by word."""
    text = "".join((ROOT / "docs" / name).read_text() for name in ("install.md", "doctor.md"))
    program, command = r"(?:holdfast|holdfast:0.1.0|--rm gateway)", r"((?:keys|ledger|doctor|serve|check) .+)"
    said = re.findall(rf"^    .*?{program} {command}$", text, re.MULTILINE)
    words = [shlex.split(re.sub(r"\[|\]", "", line), comments=True) for line in said]

    found = [understood(one) for one in words]

    assert sorted(set(found)) == ["doctor", "keys create", "ledger begin"]
    assert len(found) >= 5


def test_only_the_gateway_can_be_reached_from_outside():
    """No server, and no Redis, publishes a port: nobody goes around budgets."""
    services = compose()["services"]
    assert {name for name, one in services.items() if "ports" in one} == {"gateway"}
    assert services["gateway"]["ports"] == ["8080:8080"]
    assert not [name for name, one in services.items() if one.get("network_mode")]
    for name in ("gateway", "ledger", "pages"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]


def test_the_servers_of_compose_yaml_run_with_the_plugin(tmp_path: Path):
    """Its settings are taken by the plugin itself, and its store's address with the secrets that are mounted."""
    services, secrets = compose()["services"], compose()["secrets"]
    for name in ("vllm-1", "vllm-2"):
        one = services[name]
        assert "--no-async-scheduling" in one["command"]
        assert one["environment"]["VLLM_PLUGINS"] == "holdfast"
        (said,) = (word for word in one["command"] if word.startswith("--kv-transfer-config="))
        transfer = json.loads(said.partition("=")[2])
        assert transfer["kv_load_failure_policy"] == "recompute"
        settings = Settings.of(transfer["kv_connector_extra_config"])
        assert settings.scrub_share is None
        url = settings.store
        for secret in one["secrets"]:
            assert secret["mode"] == 0o400
            file = tmp_path / secret["source"]
            file.write_text(ENVIRONMENT[secrets[secret["source"]]["environment"]])
            file.chmod(secret["mode"])
            assert f"/run/secrets/{secret['source']}" in url
        address = read(url.replace("/run/secrets", str(tmp_path)))
        assert list(address.servers) == [("pages", 6379)]
    devices = [services[name]["deploy"]["resources"]["reservations"]["devices"][0] for name in ("vllm-1", "vllm-2")]
    assert [one["device_ids"] for one in devices] == [["0"], ["1"]]


def test_no_secret_is_in_a_file_and_the_documented_lines_make_all_that_are_asked_for(tmp_path: Path):
    """What is a secret is a variable without a default; .env has them all, for its owner alone, and is no source."""
    _, _, rest = (ROOT / "docs" / "install.md").read_text().partition("### The whole fleet")
    lines = [line.strip() for line in rest.splitlines() if line.startswith("    ") and "docker" not in line]
    subprocess.run(["bash", "-euc", "\n".join(lines)], cwd=tmp_path, check=True, timeout=60)
    made = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    needed = {name for name, how in re.findall(r"\$\{(\w+)(:[?-])", source()) if how == ":?"}

    assert needed | {one["environment"] for one in compose()["secrets"].values()} == set(made)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert all(re.fullmatch(r"[0-9a-f]{64}", said) for name, said in made.items() if SECRET.search(name))
    for name, said in re.findall(r"^\s*(\w+): (.+)$", source(), re.MULTILINE):
        if SECRET.search(name) and "environment" not in said:
            assert re.search(r"^\$\{\w+:(\?|-)\}$", said.strip()), name
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept"),
    [("ledger", {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": None}),
     ("pages", {"appendonly": "no", "save": "", "maxmemory": str(10 << 30), "maxmemory-policy": "noeviction"})],
)  # fmt: skip
def test_the_redis_servers_of_compose_yaml_start_and_keep_what_they_should(name, kept, tmp_path: Path):
    """A real one, started by the very words: it asks for its password, and has it in no argument."""
    import redis

    service = compose()["services"][name]
    (port,) = free_ports(1)
    script = service["command"][2].replace("$$", "$").replace("dir /data", f"dir {tmp_path}")
    program = tmp_path / "bin" / "redis-server"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {redis_server()} "$@" --port {port} --bind 127.0.0.1\n')
    program.chmod(0o755)
    environment = os.environ | service["environment"] | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    secret = service["environment"]["REDISCLI_AUTH"]
    process = subprocess.Popen(
        [*service["command"][:2], script], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        with redis.Redis(port=port, password=secret, socket_timeout=5) as client, redis.Redis(port=port) as stranger:
            until(lambda: answers(client), 15)
            arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
            found = {option: client.config_get(option)[option] for option in kept}
            with pytest.raises(redis.AuthenticationError):
                stranger.ping()
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()

    assert secret not in arguments
    assert {option: said for option, said in kept.items() if said is not None and found[option] != said} == {}


def answers(client: Any) -> bool:
    import redis

    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def unit() -> dict[str, list[str]]:
    """What the service says, by name, in order."""
    parser = configparser.RawConfigParser(strict=False, dict_type=Many)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "deploy" / "holdfast.service")
    return {name: said.split("\n") for name, said in parser["Service"].items()}


class Many(dict[str, Any]):
    """Keeps all values of a name, as systemd does."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, list) and name in self:
            self[name].extend(value)
        else:
            super().__setitem__(name, value)


def test_the_unit_runs_commands_that_there_are_and_waits_for_streams():
    """check, then serve, with the data directory that systemd makes; and no more than that may be written."""
    said = unit()
    for line, name in zip(said["ExecStartPre"] + said["ExecStart"], ("check", "serve"), strict=True):
        program, *words = shlex.split(line)
        assert program == "/opt/holdfast/bin/holdfast"
        assert understood(words) == name
    assert f"--data {DATA}" in said["ExecStart"][0]
    assert said["StateDirectory"] == ["holdfast"]
    assert (said["ProtectSystem"], said["User"], said["CapabilityBoundingSet"]) == (["strict"], ["holdfast"], [""])
    assert int(said["TimeoutStopSec"][0]) > Timeouts().drain_s + 1
    assert int(said["LimitNOFILE"][0]) > 24_704


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path):
    """With a program that is there, for it looks for it."""
    copy = tmp_path / "holdfast.service"
    text = (ROOT / "deploy" / "holdfast.service").read_text()
    copy.write_text(text.replace("/opt/holdfast/bin/holdfast", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
