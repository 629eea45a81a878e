"""Gateways of others, each in an environment of its own: `python3 scripts/install.py peers` makes them.

Each is set up to do as much as it has to: one worker, one server behind it, nothing logged but errors.
"""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path

from gateway.local.ports import free_ports
from loadtests.bench.peers import ROOT, Missing, Place
from loadtests.bench.words import MODEL

PEERS = ROOT / ".cache" / "peers"
HOW_TO_INSTALL = "{} is not installed; to have it measured: python3 scripts/install.py peers"
STREAMS_MAX = 20_000
ANSWER_S_MAX = 600
NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
{user}
pid "{folder}/pid";
error_log "{folder}/log" warn;
events {{ worker_connections {files}; }}
http {{
  access_log off;
  client_body_temp_path "{folder}/body"; proxy_temp_path "{folder}/proxy"; fastcgi_temp_path "{folder}/fastcgi";
  uwsgi_temp_path "{folder}/uwsgi"; scgi_temp_path "{folder}/scgi";
  upstream vllm {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; keepalive_time 24h; }}
  server {{
    listen 127.0.0.1:{port} backlog=16384;
    keepalive_requests 1000000000;
    keepalive_time 24h;
    location / {{
      proxy_pass http://vllm;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout {answer_s_max}s;
    }}
  }}
}}
"""


def version_of(name: str) -> Callable[[], str]:
    """Says the version of a Python package in the environment of its name, or raises Missing."""

    def version() -> str:
        site = [str(path) for path in (PEERS / name).glob("lib/python*/site-packages")]
        found = next(iter(Distribution.discover(name=name, path=site)), None)
        if found is None or not _program(name).exists():
            raise Missing(HOW_TO_INSTALL.format(name))
        return found.version

    return version


def nginx_version() -> str:
    """Of the one that is installed here, or was unpacked; raises Missing."""
    said = subprocess.run([_nginx(), "-v"], capture_output=True, text=True, check=False)
    if said.returncode:
        raise Missing(f"it does not run: {said.stderr.strip()}")
    return said.stderr.strip().rpartition("/")[2]


def nginx(place: Place) -> list[str]:
    """As a plain relay that holds nothing back: connections to the upstream are kept, answers are not buffered."""
    config = place.folder / "nginx.conf"
    config.write_text(
        NGINX.format(
            files=2 * STREAMS_MAX + 1000, user="user root;" if os.geteuid() == 0 else "", folder=place.folder,
            upstream=place.upstream.removeprefix("http://"), port=place.port, answer_s_max=ANSWER_S_MAX,
        )
    )  # fmt: skip
    return [_nginx(), "-p", str(place.folder), "-c", str(config), "-e", str(place.folder / "log")]


def _nginx() -> str:
    unpacked = PEERS / "nginx" / "usr" / "sbin" / "nginx"
    found = shutil.which("nginx") or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        raise Missing(HOW_TO_INSTALL.format("nginx"))
    return found


def _program(name: str) -> Path:
    return PEERS / name / "bin" / name


def vllm_router(place: Place) -> list[str]:
    """vLLM's router, in Rust."""
    return [
        str(_program("vllm-router")), "--host=127.0.0.1", f"--port={place.port}", "--policy=round_robin",
        "--worker-urls", place.upstream, "--log-level=error", f"--prometheus-port={free_ports(1)[0]}",
        f"--max-concurrent-requests={STREAMS_MAX}", f"--request-timeout-secs={ANSWER_S_MAX}",
    ]  # fmt: skip


def litellm(place: Place) -> list[str]:
    """Its proxy without a database: no keys but the master's, no budgets, nothing written."""
    key, config = "sk-" + secrets.token_hex(24), place.folder / "litellm.yaml"
    model = {"model": f"openai/{MODEL}", "api_base": f"{place.upstream}/v1", "api_key": "sk-upstream"}
    config.write_text(json.dumps({
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "litellm_settings": {"request_timeout": ANSWER_S_MAX, "num_retries": 0, "turn_off_message_logging": True},
        "general_settings": {"master_key": key, "disable_spend_logs": True, "disable_error_logs": True},
    }))  # fmt: skip
    place.headers["authorization"] = f"Bearer {key}"
    place.environment |= {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program = [str(_program("litellm")), "--host=127.0.0.1", f"--port={place.port}", "--num_workers=1"]
    return [*program, f"--config={config}", "--telemetry=False"]


def smg(place: Place) -> list[str]:
    """Shepherd Model Gateway, its router alone."""
    return [
        str(_program("smg")), "launch", "--host=127.0.0.1", f"--port={place.port}", "--policy=round_robin",
        "--worker-urls", place.upstream, "--log-level=error", f"--prometheus-port={free_ports(1)[0]}",
        f"--max-concurrent-requests={STREAMS_MAX}", f"--request-timeout-secs={ANSWER_S_MAX}",
        "--disable-tokenizer-autoload",
    ]  # fmt: skip
