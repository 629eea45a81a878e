"""A real server with the plugin, asked twice: once whole, and once as a gateway asks a standby, behind what it has."""

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.local.engine import Engine, tiny_model
from tests.vllm_plugin.real.engine import REPOSITORY, installed

THINK, END = 8190, 8191  # ids of <think> and </think>
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    }}}
    for name in ("weather", "tides")
]  # fmt: skip
Chunks = list[list[int]]


def server(folder: Path, *arguments: str, model: Path | None = None, **extra: Any) -> Engine:
    """extra: of `kv_connector_extra_config`."""
    transfer = {
        "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"scrub": "all"} | extra,
    }  # fmt: skip
    return Engine(
        model or tiny_model(),
        log=folder / "vllm.log",
        arguments=["--no-async-scheduling", "--kv-transfer-config", json.dumps(transfer), *arguments],
        environment={
            "PYTHONPATH": os.pathsep.join([str(installed(folder / "installed")), str(REPOSITORY)]),
            "VLLM_PLUGINS": "holdfast",
        },
    )


def thinking_model(folder: Path) -> Path:
    """The tiny model, whose last two tokens are <think> and </think>."""
    shutil.copytree(tiny_model(), folder)
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    model = said["model"]
    gone = {token for token, number in model["vocab"].items() if number in (THINK, END)}
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in gone}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in gone]
    for number, text in ((THINK, "<think>"), (END, "</think>")):
        model["vocab"][text] = number
        said["added_tokens"].append({
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": False,
        })  # fmt: skip
    file.write_text(json.dumps(said))
    return folder


class Stream:
    """The events of an answer. tokens: of each choice, in chunks as they came."""

    def __init__(self, events: Sequence[dict[str, Any]], choices: int) -> None:
        self.events = [_same(event) for event in events]
        self.tokens: list[Chunks] = [[] for _ in range(choices)]
        self.counts: list[int] = []  # of all tokens of all choices, after each event
        count = 0
        for event in events:
            for choice in event.get("choices", []):
                ids = choice.get("token_ids") or []
                count += len(ids)
                if ids:
                    self.tokens[choice["index"]].append(ids)
            self.counts.append(count)

    def before(self, events: int, choices: int) -> list[Chunks]:
        """What a client has who got so many events."""
        return Stream(self.events[:events], choices).tokens


def _same(event: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from answer to answer."""
    return {name: value for name, value in event.items() if name not in ("id", "created", "system_fingerprint")}


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    """The JSON, or, of a stream, its events. Raises urllib.error.HTTPError."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps({"model": "tiny"} | body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        said = response.read().decode()
    if not body.get("stream"):
        return json.loads(said)
    lines = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def stream(url: str, path: str, body: dict[str, Any], resume: Any = None) -> Stream:
    """resume: what the gateway says of the tokens that the client has."""
    body = body | {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    if resume is not None:
        body["vllm_xargs"] = {"holdfast_resume": resume if isinstance(resume, str) else json.dumps(resume)}
    return Stream(ask(url, path, body), body.get("n", 1))


def status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "/holdfast/status", timeout=30) as response:
        return dict(json.loads(response.read()))


def refusal(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and the message of an error."""
    try:
        answer = ask(url, path, body)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    return 200, json.dumps(answer)
